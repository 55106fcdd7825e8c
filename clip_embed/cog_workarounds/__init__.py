"""What exists only because of Cog. Each entry of REGISTER may be deleted, alone, when its test
passes without it; no number that the service returns changes.

worker                switches the workarounds on in Cog's worker, and nowhere else
output                send a vector as one message
cancel_safe_executor  run calls that Cog's cancellation cannot interrupt
temp_files            remove the temporary files that Cog leaves behind
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workaround:
    """One entry. seen_in: the newest version of Cog in which the symptom was seen. source: where in
    Cog the cause is. code: where the workaround is. test: fails without the workaround."""

    symptom: str
    seen_in: str
    source: str
    code: str
    test: str


REGISTER = (
    Workaround(
        symptom="a list of 768 floats is sent element by element, 25 ms for each prediction; and"
        " Cog's search for files among the elements of a list takes 3 ms more",
        seen_in="0.23.1",
        source="coglet: predictor.rs, process_single_output; output.rs, encode_files",
        code="clip_embed/cog_workarounds/output.py, openapi.json",
        test="tests/service/test_service.py::test_the_output_is_a_flat_list_however_it_was_built",
    ),
    Workaround(
        symptom="when a client hangs up, Cog raises an exception in the thread that prepares the"
        " input: after some 700 of them the event loop hangs, or files stay open",
        seen_in="0.23.1",
        source="coglet: cancellation by PyThreadState_SetAsyncExc; cog.types: URLPath.convert",
        code="clip_embed/cog_workarounds/cancel_safe_executor.py",
        test="tests/service/test_service.py::test_cog_starts_no_thread_for_an_image",
    ),
    Workaround(
        symptom="the temporary file of an image stays if its prediction was cancelled before it"
        " began, or if the download failed",
        seen_in="0.23.1",
        source="cog.types: URLFile, Path.convert; coglet: worker.rs, cleanup of inputs",
        code="clip_embed/cog_workarounds/temp_files.py",
        test="tests/service/test_service.py::test_no_temporary_file_is_left",
    ),
    Workaround(
        symptom="4 of 1,000 requests are answered 409 although slots are free, when Cog's HTTP"
        " server runs on several threads",
        seen_in="0.23.1",
        source="coglet: PermitPool::try_acquire takes its channel with try_lock",
        code="cog.yaml, TOKIO_WORKER_THREADS=1; clip_embed/cog_workarounds/worker.py, which unsets"
        " it before obstore reads it",
        test="tests/service/test_service.py::test_no_request_is_refused_while_slots_are_free",
    ),
    Workaround(
        symptom="the last line that setup prints is missing from /health-check one time in eight",
        seen_in="0.23.1",
        source="coglet: the end of setup and its log travel on different channels",
        code="clip_embed/cog_workarounds/worker.py, end_setup",
        test="tests/service/test_service.py::test_the_log_of_setup_is_complete",
    ),
)
