"""RETURNN's packages that only hold modules: returnn.torch, returnn.torch.util, returnn.tf, returnn.engine, ..."""
