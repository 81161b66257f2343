"""How true the probabilities of a segmentation are: sums over pixels, scores, a region, a temperature; arrays alone."""
