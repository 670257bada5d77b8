"""Pixels: files, masks, boxes, crops, in whole numbers and tensors. No model is known here."""
