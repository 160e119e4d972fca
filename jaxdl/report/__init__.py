"""Plots and HTML pages from the files of runs and sweeps; never opens a device."""
