"""Whether new volumes help a segmenter: generated pairs of image and label beside few real ones."""
