"""Cases predicted one after another, the next ones read meanwhile. One that fails is told and stops no other."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from tqdm import tqdm

from datasets.streams import ahead
from files.faults import Fault, VolumeFault, describe_faults
from files.pairing import Case
from prediction.inference import Predicting, Prediction, predict
from prediction.model import Model
from prediction.preparation import Preparation, Prepared
from processes.errors import UserError

Write = Callable[[Case, Prediction], None]  # what puts a prediction where it belongs


def predict_each(
    model: Model, prepare: Preparation, cases: Sequence[Case], predicting: Predicting, jobs: int, write: Write
) -> tuple[list[Fault], list[Fault]]:
    """Predicts and writes the cases, `jobs` of which are read ahead. Raises what `write` raises, as on a full disk.

    Returns what is wrong with those that were not predicted, and what of the others is unlike the training's.
    """
    faults: list[Fault] = []
    unlike: list[Fault] = []
    with tqdm(total=len(cases), desc="predicting", unit="case", disable=None) as bar:
        for case, prepared in _read_all(prepare, cases, jobs):
            try:
                if isinstance(prepared, VolumeFault):
                    raise prepared
                write(case, _attempt(model, case, prepared, predicting))
                unlike += prepared.unlike
            except VolumeFault as error:
                faults.append(error.fault)
                tell_lost(error.fault)
                bar.set_postfix_str(f"{len(faults)} failed")
            bar.update()
    return faults, unlike


def tell_lost(fault: Fault) -> None:
    """A line on the screen, above the bar."""
    tqdm.write(f"Not predicted: {describe_faults([fault])}", file=sys.stderr)


def _read_all(prepare: Preparation, cases: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Prepared | VolumeFault]]:
    """The cases prepared, the next ones while this one is predicted; a fault stands in the place of its case."""

    def read(case: Case) -> tuple[Case, Prepared | VolumeFault]:
        try:
            return case, prepare.read(case)
        except (VolumeFault, UserError, OSError, MemoryError, RuntimeError) as error:
            return case, _fault_of(error, case, predicting=None)

    return ahead([partial(read, case) for case in cases], workers=jobs, most=jobs)


def _attempt(model: Model, case: Case, prepared: Prepared, predicting: Predicting) -> Prediction:
    """The prediction. Raises VolumeFault where there is none, and RuntimeError for what is no fault of the memory."""
    channels = prepared.stored.shape[1]
    if channels != model.in_channels:
        what = f"has another number of channels than the {model.in_channels} that the network takes"
        raise VolumeFault(what, f"{case.patient} has {channels}")
    try:
        return predict(model, prepared, predicting)
    except (MemoryError, RuntimeError) as error:
        raise _fault_of(error, case, predicting) from error


def _fault_of(error: Exception, case: Case, predicting: Predicting | None) -> VolumeFault:
    """The fault that an error is. Raises it where it is none of the volume's.

    predicting: how the network was called when it came; None: it was read
    """
    if isinstance(error, VolumeFault):
        return error
    if isinstance(error, UserError):
        return VolumeFault("cannot be used", f"{case.patient} ({str(error).rstrip('.')})")
    if isinstance(error, OSError):
        return VolumeFault("cannot be read", f"{case.patient} ({error})")
    if not is_of_memory(error):
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if predicting is None:
        return VolumeFault("does not fit into the memory with those that are read ahead (a lower --jobs)", case.patient)
    less = "another machine" if predicting.batch_size == 1 else f"a lower --batch_size than {predicting.batch_size}"
    return VolumeFault(f"does not fit into the memory of the device ({less}, or --device cpu)", case.patient)


def is_of_memory(error: Exception) -> bool:
    """Whether too little memory was left; on the CPU torch says so in words alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
