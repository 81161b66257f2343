"""The official archives, one a file: what lies where in each, its oddities, and the slicer's flags that follow."""
