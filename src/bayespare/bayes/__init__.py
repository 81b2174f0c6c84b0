"""Pure tensor functions and small modules: gates, slabs, unit scales, Gaussian posteriors."""
