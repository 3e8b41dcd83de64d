"""The site: local statistics, training and evaluation."""
