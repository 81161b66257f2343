"""The slow drift of brightness across an MR volume, taken out by N4 (Tustison et al., IEEE TMI 2010)."""

import numpy as np
import SimpleITK as sitk

CONVERGENCE = 1e-3
ITERATIONS = (50, 50, 50, 50)  # at most, on each of four levels; a level has twice the control points of the last
FEWEST = 8  # voxels that shrinking leaves along an axis


def correct_bias(volume: np.ndarray, shrink: int = 1) -> np.ndarray:
    """(X, Y, Z) -> (X, Y, Z) float32: the volume divided by its bias field.

    A volume with a single grey level above 0 is returned as it is.

    N4 works on logarithms: voxels at or below 0 are divided too, but the field is estimated without them. No other mask
    is made, as published by Chaitanya et al.; Otsu's would leave dark organs out. The field has the same number of
    control points along each axis, so that neither the spacing nor, but for rounding, the order of the axes matters.

    volume: three axes, one of which may have a single voxel
    shrink: the field is estimated on every n-th voxel along each axis: quicker by its third power
    """
    volume = volume.astype(np.float32)
    inside = volume > 0
    if not inside.any() or np.ptp(volume[inside]) == 0:
        return volume
    # one thread, for the same bits on every machine; a limit of the filter's own does not reach those inside it
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetConvergenceThreshold(CONVERGENCE)
    corrector.SetMaximumNumberOfIterations(ITERATIONS)
    image, mask = (sitk.GetImageFromArray(array.squeeze()) for array in (volume, inside.astype(np.uint8)))
    factors = [max(1, min(shrink, n // FEWEST)) for n in image.GetSize()]
    corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return volume / np.exp(log_field).reshape(volume.shape)
