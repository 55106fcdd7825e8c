"""What exists only because of Cog. Each entry of REGISTER may be deleted, alone, when its test
passes without it; no number that the service returns changes.

worker           switches the workarounds on in Cog's worker, and nowhere else
output           send a vector as one message
prediction_dirs  remove the directories that Cog leaves behind
lost_slots       notice that Cog has lost slots, and have the process restarted
drain            let asynchronous predictions finish before Cog exits
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
        symptom="a list of 768 floats is sent element by element: 25 ms more, and hundreds of"
        " webhooks, for each prediction; Cog's search for files among the elements of a list takes"
        " 3 ms; and if the schema's output is an array, one message comes out nested",
        seen_in="0.23.1",
        source="coglet: predictor.rs, process_single_output; output.rs, encode_files;"
        " orchestrator.rs, output_is_array. Cog: schema_type.go, opaqueSchemaType",
        code="clip_embed/cog_workarounds/output.py, openapi.json, predict.py (Opaque)",
        test="tests/service/test_cog_boundary.py::test_output_is_sent_as_one_message",
    ),
    Workaround(
        symptom="each number is written with 17 digits by Python, and parsed, copied and written"
        " with as many by Cog: 0.9 ms more for each prediction; a float32 needs 9",
        seen_in="0.23.1",
        source="coglet: predictor.rs, process_single_output: json.dumps",
        code="clip_embed/cog_workarounds/output.py, dumps; clip_embed/cog_workarounds/worker.py,"
        " activate: json.dumps",
        test="tests/service/test_cog_boundary.py::test_numbers_have_the_digits_of_a_float32",
    ),
    Workaround(
        symptom="Cog downloads and decodes images before `predict`: from any address, without a"
        " limit of size; cancellation does not stop it; files remain; a client that hangs up"
        " interrupts the thread at any point, and the event loop can hang. To find the images, it"
        " evaluates the type hints of `predict` for each prediction: 0.1 to 0.2 ms",
        seen_in="0.23.1",
        source="coglet: input.rs, prepare_input, classify_fields; cancel.rs. cog.types:"
        " URLPath.convert, URLFile",
        code="clip_embed/cog_workarounds/worker.py, activate: __annotations__",
        test="tests/service/test_service.py::test_cog_starts_no_thread_for_an_image",
    ),
    Workaround(
        symptom="three directories of each prediction stay in /tmp for ever",
        seen_in="0.23.1",
        source="coglet: service.rs, predict",
        code="clip_embed/cog_workarounds/prediction_dirs.py",
        test="tests/service/test_attacks.py::test_5000_predictions_leave_nothing",
    ),
    Workaround(
        symptom="the slot of a prediction is lost if its directory cannot be made (full disk,"
        " read-only root, an id that is not a file name); without slots the server stays BUSY",
        seen_in="0.23.1",
        source="coglet: service.rs, predict; permit/pool.rs, Drop of PermitInUse",
        code="clip_embed/cog_workarounds/lost_slots.py; check_writable in"
        " clip_embed/cog_workarounds/prediction_dirs.py",
        test="tests/service/test_cog_boundary.py::test_server_that_lost_its_slots_ends",
    ),
    Workaround(
        symptom="on SIGTERM asynchronous predictions are dropped without their webhooks",
        seen_in="0.23.1",
        source="coglet: transport/http/server.rs, serve; routes.rs, create_prediction_with_id",
        code="clip_embed/cog_workarounds/drain.py",
        test="tests/service/test_cog_boundary.py"
        "::test_asynchronous_prediction_is_finished_before_the_server_exits",
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
        code="clip_embed/cog_workarounds/worker.py, activate: LOG_PAUSE_SECONDS",
        test="tests/service/test_service.py::test_the_log_of_setup_is_complete",
    ),
)
