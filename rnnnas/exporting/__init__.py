"""A trained model outside of the tool: ONNX, torch.export, a page for the browser, a hub folder."""
