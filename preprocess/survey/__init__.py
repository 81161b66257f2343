"""What lies in sets and in folders of volumes, what is wrong with it, and the makefile that is proposed for it."""
