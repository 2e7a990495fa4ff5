"""A YOLOv5 with RepVGG in its C3 that finds handwritten digits on photographs: a few minutes of training, then the whole road."""
