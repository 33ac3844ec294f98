"""The reference networks. Their modules import PyTorch: get them through ``get_model_by_name``."""
