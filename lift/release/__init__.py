"""A release folder: its manifest, who signed it, who approved it. Nothing here needs torch."""
