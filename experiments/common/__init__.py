"""What the scripts share: the harness, data sets, figures, scores of images."""
