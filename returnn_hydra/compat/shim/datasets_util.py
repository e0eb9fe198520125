"""returnn.datasets.util"""
