"""The two public benchmarks, BraTS and SynthRAD: from the official folder to a table."""
