"""returnn.torch, returnn.torch.util"""
