"""The whole road in one command: train with branches, fold, prove, export, time, and show it.

`detection` is the demonstration: a YOLOv5 that finds handwritten digits on photographs. `classification` is the
short one: a RepVGG that tells digits apart.
"""
