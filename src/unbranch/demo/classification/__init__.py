"""A RepVGG that tells 5,000 handwritten digits apart: a minute of training, then the whole road."""
