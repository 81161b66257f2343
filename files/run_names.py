"""What is called how in a run's folder, for who writes it and who reads it: of the last network, and of the best."""

MASKS = {"last": "last_epoch", "best_3d": "best_epoch_3d"}  # folders, as is iter007 of an epoch between
PATIENTS = {"last": "patients_last.csv", "best_3d": "patients_best_3d.csv"}  # scores, a row a patient and class
CLASSES = {"last": "classes_last.csv", "best_3d": "classes_best_3d.csv"}  # of pictures, over all of a set
