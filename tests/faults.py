"""Faults, the required behaviour and the tests that show it: the source of the table in docs/reliability.md.

python -m tests.faults
"""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"

# By group: the fault, what happens, and the test, which fails when the defence is taken out.
FAULTS: dict[str, list[tuple[str, str, str]]] = {
    "Nodes and the network between them": [
        (
            "node killed, first, middle or last, with a replica",
            "the stream goes on, no token differs",
            "tests/chain/test_recovery.py::test_killed_node_with_a_replica_changes_no_token",
        ),
        (
            "node restarted empty at its address",
            "the stream waits and goes on",
            "tests/chain/test_recovery.py::test_node_that_comes_back_empty_goes_on",
        ),
        (
            "node frozen",
            "noticed by keepalive, replaced",
            "tests/chain/test_recovery.py::test_frozen_node_is_noticed_and_replaced",
        ),
        (
            "no other node in time",
            "the tokens so far, then an error that names the node; nothing left on the others",
            "tests/chain/test_recovery.py::test_without_another_node_the_error_comes_in_time",
        ),
        (
            "recovery turned off",
            "the error at once",
            "tests/chain/test_chain_over_grpc.py::test_killed_node_ends_the_answer_with_its_name",
        ),
        (
            "random kills, freezes, partitions, resets and slow lines under traffic",
            "all promises above",
            "tests/soak/test_soak.py::test_streams_survive_random_faults",
        ),
        (
            "compute thread stuck",
            "unready, then the process ends with 70",
            "tests/node/test_watchdog.py::test_stuck_thread_ends_the_node_with_its_own_code",
        ),
        (
            "head gone",
            "its sessions end with their lease",
            "tests/chain/test_chain.py::test_a_head_that_is_gone_frees_its_sessions",
        ),
        ("SIGTERM", "drains, ends with 0", "tests/cli/test_cli.py::test_sigterm_drains_and_ends_with_zero"),
        ("port in use", "refused, with its owner", "tests/cli/test_cli.py::test_port_in_use_is_refused"),
        (
            "node of another pipeline",
            "refused before the first token",
            "tests/chain/test_chain.py::test_node_of_another_pipeline_is_refused",
        ),
        (
            "network cut in decode: reset, partition, one way only",
            "the stream goes on, no token differs",
            "tests/chain/test_partition.py::test_a_node_cut_off_in_decode_changes_no_token",
        ),
        (
            "network cut in prefill",
            "the stream goes on, no token differs",
            "tests/chain/test_partition.py::test_a_node_cut_off_in_prefill_changes_no_token",
        ),
        (
            "network cut at admission",
            "the request is admitted on the other nodes",
            "tests/chain/test_partition.py::test_a_node_cut_off_at_admission_changes_no_token",
        ),
        (
            "a draw lost on its way back, and the same node back at once",
            "drawn again at its place, nothing runs twice",
            "tests/chain/test_partition.py::test_a_draw_that_is_lost_on_its_way_back_is_drawn_again",
        ),
        (
            "network cut while a request is given up",
            "it ends soon, and the other nodes free its session",
            "tests/chain/test_partition.py::test_a_node_cut_off_at_the_end_holds_nobody_up",
        ),
        (
            "network cut at connect",
            "named in time",
            "tests/chain/test_partition.py::test_a_node_cut_off_at_connect_is_named_in_time",
        ),
        (
            "a step that takes longer than a lease",
            "ends no session, here or on other nodes",
            "tests/chain/test_chain.py::test_a_step_longer_than_a_lease_ends_no_session",
        ),
        (
            "an idle link to a node that is cut off",
            "noticed by keepalive",
            "tests/chain/test_partition.py::test_an_idle_link_is_missed_by_keepalive",
        ),
        (
            "connections reset again and again",
            "no token differs",
            "tests/chain/test_partition.py::test_a_flapping_node_changes_no_token",
        ),
        (
            "slow line, small pieces",
            "slower; no node is given up",
            "tests/chain/test_partition.py::test_a_slow_network_loses_no_node",
        ),
        (
            "only the way between two nodes is cut",
            "their steps go through the head",
            "tests/chain/test_partition.py::test_neighbours_that_cannot_reach_each_other_go_by_the_head",
        ),
        (
            "a probe of a neighbour fails",
            "running requests go on",
            "tests/node/test_peers.py::test_a_failed_probe_silences_no_link",
        ),
        (
            "node restarted at its address",
            "reached at once, no step lost",
            "tests/node/test_peers.py::test_a_node_that_came_back_is_reached_at_once",
        ),
        (
            "the last node of a stage lost, its shard in the calling process",
            "the calling process stands in until a node is back",
            "tests/chain/test_stand_in.py::test_the_calling_process_stands_in_for_a_node",
        ),
        (
            "stream moved to another numeric class",
            "reported: continued, not bit-exact",
            "tests/chain/test_numeric_class.py::test_a_move_to_another_numeric_class_is_reported",
        ),
        (
            "node joins under load",
            "used for new work only",
            "tests/chain/test_membership.py::test_a_node_that_joins_is_used_for_new_work",
        ),
        (
            "node of another pipeline, or with shorter sessions, joins",
            "refused, reported once",
            "tests/chain/test_membership.py::test_nodes_that_help_nobody_are_refused",
        ),
        (
            "address changed",
            "the new one is taken in from nodes.toml",
            "tests/chain/test_membership.py::test_a_head_follows_the_list_of_its_nodes",
        ),
        (
            "node's machine slept",
            "noticed by a clock that counts sleep",
            "tests/node/test_watchdog.py::test_a_machine_that_slept_says_so",
        ),
        (
            "the same, seen from elsewhere",
            "named in `status`",
            "tests/cli/test_status.py::test_a_node_that_slept_is_named",
        ),
        (
            "node gone, seen from elsewhere",
            "a row in `status`",
            "tests/cli/test_status.py::test_status_shows_a_node_that_is_gone_as_a_row",
        ),
        (
            "SIGTERM while loading",
            "ends at once",
            "tests/node/test_lifecycle.py::test_sigterm_while_loading_ends_at_once",
        ),
        (
            "node lost for good under a gateway's stream",
            "an error event, no [DONE]",
            "tests/gateway/test_lifecycle.py::test_a_node_lost_in_mid_stream_is_an_error_event",
        ),
    ],
    "What comes over the wire": [
        (
            "request for weight files with paths, odd digests or ranges beyond the file",
            "refused, no byte read",
            "tests/node/test_file_servicer.py::test_malformed_requests_are_refused",
        ),
        (
            "unknown, replayed, gapped steps, old epochs, at random",
            "refused, nothing changes",
            "tests/engine/test_sessions_stateful.py::test_session_machine",
        ),
        (
            "garbage on a node's port",
            "the node goes on",
            "tests/node/test_servicer.py::test_garbage_on_the_port_does_not_disturb",
        ),
        (
            "tensors whose bytes and shape disagree",
            "refused before an array exists",
            "tests/wire/test_codec.py::test_tensors_that_lie_are_refused",
        ),
        ("random bytes as messages", "refused", "tests/wire/test_codec.py::test_random_bytes_never_break_the_decoder"),
        (
            "malformed steps",
            "refused, nothing changes",
            "tests/node/test_servicer.py::test_malformed_steps_are_refused_and_change_nothing",
        ),
        (
            "NaN hidden states",
            "the session ends, the node lives",
            "tests/node/test_servicer.py::test_nan_hidden_states_end_the_session_and_not_the_node",
        ),
        ("message over the limit", "refused", "tests/node/test_servicer.py::test_message_beyond_the_limit_is_refused"),
        (
            "error texts with secrets",
            "never sent to a peer",
            "tests/node/test_servicer.py::test_errors_tell_a_peer_nothing_but_their_own_texts",
        ),
        (
            "steps out of place",
            "refused, nothing changes",
            "tests/node/test_servicer.py::test_steps_out_of_place_are_refused",
        ),
        ("impossible opens", "refused", "tests/node/test_servicer.py::test_impossible_opens_are_refused"),
        (
            "links that begin wrongly",
            "refused",
            "tests/node/test_servicer.py::test_links_that_begin_wrongly_are_refused",
        ),
        (
            "more steps than a head's credit",
            "refused",
            "tests/engine/test_compute.py::test_an_owner_beyond_its_credit_is_refused",
        ),
    ],
    "Certificates and signatures": [
        (
            "stranger or revoked machine that asks for weight files",
            "nothing is read",
            "tests/hub/test_neighbours.py::test_strangers_are_given_nothing_and_fetch_from_the_hub",
        ),
        (
            "machine revoked while it reads a weight file",
            "cut off",
            "tests/node/test_file_servicer.py::test_a_revoked_reader_is_cut_off_in_the_middle",
        ),
        (
            "file beside a signed manifest that it does not name",
            "not read; `verify --key` fails",
            "tests/security/test_commands.py::test_files_beside_a_signed_manifest_change_nothing",
        ),
        (
            "tampered manifest with `--require-signature`",
            "refused, exit 3",
            "tests/security/test_signatures.py::test_a_changed_manifest_is_refused",
        ),
        (
            "unsigned manifest with `--require-signature`",
            "refused, exit 3",
            "tests/security/test_signatures.py::test_a_missing_signature_is_refused",
        ),
        (
            "no certificate, a foreign one",
            "refused before a payload is read",
            "tests/node/test_tls.py::test_no_certificate_is_refused",
        ),
        ("expired certificate", "refused", "tests/node/test_tls.py::test_an_expired_head_is_refused"),
        (
            "revoked certificate",
            "its live link is cut",
            "tests/node/test_tls.py::test_a_revoked_head_is_cut_off_and_stays_out",
        ),
        (
            "a foreign head",
            "refused before a payload is read",
            "tests/node/test_tls.py::test_a_foreign_head_is_refused",
        ),
        ("an expired node", "refused by the head", "tests/node/test_tls.py::test_an_expired_node_is_refused"),
        (
            "a node's certificate used to give orders",
            "refused before a payload is read",
            "tests/node/test_tls.py::test_a_node_gives_no_orders",
        ),
        (
            "revoked node",
            "its links are cut, its streams go elsewhere",
            "tests/node/test_tls.py::test_a_revoked_node_is_left",
        ),
        (
            "another node answers at a known address",
            "refused",
            "tests/node/test_tls.py::test_another_node_cannot_take_the_place_of_one_that_was_met",
        ),
        (
            "listening or dialling off loopback without TLS",
            "refused",
            "tests/node/test_tls.py::test_nothing_is_sent_off_loopback_without_tls",
        ),
        ("a forged revocation list", "refused", "tests/node/test_tls.py::test_a_forged_list_does_not_pass_the_wire"),
        ("an invitation used twice", "refused", "tests/security/test_joining.py::test_a_machine_joins_once"),
        (
            "somebody else answers in the authority's place",
            "does not learn the secret",
            "tests/security/test_joining.py::test_a_wrong_fingerprint_is_refused_before_the_secret_is_sent",
        ),
        (
            "certificate near its end",
            "renewed without a restart",
            "tests/node/test_tls.py::test_a_renewed_certificate_is_used_without_a_restart",
        ),
        (
            "signature of another key",
            "refused, exit 3",
            "tests/security/test_signatures.py::test_another_key_is_refused",
        ),
    ],
    "Weights, manifests, templates": [
        (
            "tokenizer that panics, or runs without end",
            "an error, the next text is encoded",
            "tests/text/test_encoder.py::test_a_tokenizer_that_goes_wrong_is_a_prompt_error",
        ),
        (
            "malformed safetensors",
            "refused, MLX never sees them",
            "tests/checkpoint/test_checkpoint.py::test_malformed_file_is_refused",
        ),
        (
            "random damage to a weight file",
            "found",
            "tests/checkpoint/test_checkpoint.py::test_random_damage_never_passes_unnoticed",
        ),
        (
            "flipped bit in a published weight file",
            "refused at load",
            "tests/checkpoint/test_checkpoint.py::test_gate_sees_a_flipped_bit",
        ),
        (
            "truncated weight file",
            "refused at load",
            "tests/checkpoint/test_checkpoint.py::test_gate_sees_a_truncated_file",
        ),
        (
            "missing, extra, misshapen tensors",
            "refused, by name",
            "tests/checkpoint/test_checkpoint.py::test_gate_lists_missing_and_extra_tensors",
        ),
        (
            "a tensor in two weight files, files missing of a set",
            "refused, files and tensors named",
            "tests/checkpoint/test_weight_files.py::test_odd_folder_is_refused_by_its_names",
        ),
        (
            "an index that was made for other files",
            "read as mlx-lm does, with a note",
            "tests/checkpoint/test_weight_files.py::test_odd_folder_is_read_as_mlx_lm_loads_it",
        ),
        (
            "stages whose numbers are not the whole model's",
            "refused with exit 3, nothing written; with `--allow-inexact` said everywhere",
            "tests/cli/test_inexact.py::test_split_is_refused_and_leaves_nothing",
        ),
        (
            "a stage too large for the machine",
            "refused before its weights are fetched, exit 6",
            "tests/cli/test_hub_ids.py::test_stage_that_cannot_fit_is_refused_before_its_weights_are_fetched",
        ),
        (
            "a followed revision that is not what its pipeline names, or cannot be loaded",
            "the old one is served on, or again at the same address",
            "tests/hub/test_follow.py::test_revision_that_cannot_be_fetched_or_loaded_leaves_the_old_one",
        ),
        (
            "a new revision while answers run",
            "they end on the old one",
            "tests/hub/test_follow.py::test_new_revision_is_served_once_the_sessions_end",
        ),
        (
            "a node of another version of the pipeline",
            "refused, with the side that is older and the commands",
            "tests/hub/test_follow.py::test_head_says_which_side_is_older",
        ),
        (
            "another repo with the name of a mirror",
            "refused; replaced only if asked, and kept under a tag",
            "tests/hub/test_mirror.py::test_other_contents_are_replaced_only_if_asked",
        ),
        (
            "a weight file that changed since `split` wrote it",
            "nothing is published",
            "tests/cli/test_publish.py::test_push_refuses_what_is_not_as_written",
        ),
        (
            "weights that changed since their parity was measured",
            "no manifest gets the old numbers",
            "tests/cli/test_publish.py::test_kept_parity_is_refused_for_changed_weights",
        ),
        (
            "NaN or infinite weights",
            "refused with `--check-weights`",
            "tests/splitting/test_check_weights.py::test_split_is_refused",
        ),
        (
            "manifest with gaps, overlaps, hostile names",
            "refused, by field",
            "tests/test_manifest.py::test_bad_manifest_is_refused",
        ),
        ("manifest bytes of any kind", "refused soon", "tests/test_manifest.py::test_hostile_bytes_are_refused_soon"),
        (
            "config.json out of bounds",
            "refused",
            "tests/checkpoint/test_checkpoint.py::test_config_out_of_bounds_is_refused",
        ),
        (
            "chat template that attempts code",
            "refused",
            "tests/text/test_template.py::test_template_that_attempts_code_is_refused",
        ),
        (
            "chat template without bounds",
            "ended, others unaffected",
            "tests/text/test_template.py::test_template_without_bounds_is_ended",
        ),
        (
            "chat template with endless output",
            "capped",
            "tests/text/test_template.py::test_template_output_is_capped_exactly",
        ),
        (
            "hostile names in cards",
            "data, not markup",
            "tests/splitting/test_cards.py::test_hostile_values_are_data_in_a_pipeline_card",
        ),
        (
            "disk full during a split",
            "finished once there is room",
            "tests/splitting/test_split.py::test_disk_full_in_the_middle",
        ),
        (
            "split killed at any disk operation",
            "finished by the next run",
            "tests/splitting/test_split.py::test_kill_at_any_moment_loses_nothing",
        ),
        (
            "shard of another model, same shapes",
            "refused by its digest",
            "tests/hub/test_fetch.py::test_shard_that_is_not_the_manifests_is_refused",
        ),
        (
            "names that differ in case only",
            "refused",
            "tests/splitting/test_split.py::test_names_that_differ_in_case_only_are_refused",
        ),
        ("names that leave the cache", "refused", "tests/hub/test_cache.py::test_names_cannot_leave_the_cache"),
        ("oversized tokenizer", "refused", "tests/splitting/test_split.py::test_oversized_tokenizer_is_refused"),
        (
            "broken chat template",
            "an error with its own message",
            "tests/text/test_template.py::test_broken_template_is_a_prompt_error",
        ),
        (
            "manifest of a newer version",
            "refused, with the version that reads it",
            "tests/test_manifest.py::test_newer_version_names_what_reads_it",
        ),
    ],
    "The Hub and the disk": [
        (
            "another user's code where MLX looks for compiled kernels",
            "a private folder is used",
            "tests/upstream/test_imports.py::test_compiled_kernels_lie_in_a_private_folder",
        ),
        ("code in a repo", "never fetched, never run", "tests/hub/test_fetch.py::test_code_is_never_fetched"),
        (
            "Hub offline, cache complete",
            "starts from the cache",
            "tests/hub/test_fetch.py::test_offline_start_from_the_cache",
        ),
        (
            "Hub offline, cache incomplete",
            "says which files, exit 5",
            "tests/hub/test_fetch.py::test_offline_without_the_files",
        ),
        ("Hub busy", "asked again, within bounds", "tests/hub/test_fetch.py::test_busy_hub_is_asked_again"),
        ("connection cut in a download", "resumed", "tests/hub/test_fetch.py::test_cut_connection_is_resumed"),
        ("stalled download", "cut and resumed", "tests/hub/test_fetch.py::test_stalled_body_is_cut_and_resumed"),
        (
            "download of which a byte comes now and then",
            "cut and resumed after a minute, given up after five tries",
            "tests/hub/test_fetch.py::test_body_that_drips_is_cut_and_resumed",
        ),
        (
            "weight file of the shard's repo of which only a byte comes now and then",
            "the source is read instead",
            "tests/hub/test_by_reference.py::test_copy_that_drips_is_passed_over",
        ),
        (
            "weight file that lies in more source files than the Hub's client has connections",
            "one of them is open at a time",
            "tests/hub/test_by_reference.py::test_one_source_file_is_open_at_a_time",
        ),
        (
            "server ignores ranges each time",
            "read on in order; refused by name before more is skipped than the file has",
            "tests/hub/test_fetch.py::test_server_that_ignores_ranges_is_named",
        ),
        ("server ignores ranges once", "begun again", "tests/hub/test_fetch.py::test_ignored_range_restarts_right"),
        ("wrong length", "no file", "tests/hub/test_fetch.py::test_body_of_the_wrong_length_is_refused"),
        (
            "flipped bit in a range of the source, each time",
            "the source is named, and no such file is in the cache",
            "tests/hub/test_by_reference.py::test_flipped_bits_are_never_loaded",
        ),
        (
            "ranges of the source that are wrong: beyond its files, swapped, another source's or stage's",
            "refused",
            "tests/hub/test_by_reference.py::test_wrong_ranges_are_refused",
        ),
        (
            "source gated, at once or in the middle",
            "says whom to ask for access; the next run goes on",
            "tests/hub/test_by_reference.py::test_gated_source_is_named",
        ),
        (
            "source gone",
            "named, and not needed for what is cached",
            "tests/hub/test_by_reference.py::test_source_that_is_gone_is_named",
        ),
        (
            "weight file that its shard's repo refuses",
            "assembled from the source",
            "tests/hub/test_by_reference.py::test_copies_get_references_and_both_serve",
        ),
        (
            "weight file of a shard's repo that is not the stage's",
            "named in a warning, and assembled from the source",
            "tests/hub/test_by_reference.py::test_copy_that_differs_is_passed_over",
        ),
        (
            "computed tensors gone from a shard's repo",
            "refused by name; the next push completes the repo",
            "tests/hub/test_by_reference.py::test_computed_tensors_that_are_gone_are_uploaded_again",
        ),
        (
            "answer with another range than requested",
            "asked again",
            "tests/hub/test_by_reference.py::test_wrong_content_range_is_asked_again",
        ),
        (
            "assembling killed",
            "finished by the next run",
            "tests/hub/test_by_reference.py::test_kill_in_the_middle_of_assembling_is_finished_by_the_next_run",
        ),
        (
            "source's file of another size than when it was published",
            "refused, no byte of it is used",
            "tests/hub/test_reference_faults.py::test_source_file_that_changed_size_is_not_read",
        ),
        (
            "source renamed",
            "named",
            "tests/hub/test_reference_faults.py::test_renamed_source_is_named",
        ),
        (
            "manifest that names another source than its shards'",
            "refused",
            "tests/hub/test_reference_faults.py::test_manifest_of_another_source_is_refused",
        ),
        (
            "publishing by reference killed",
            "no pipeline is visible; the next run reads no finished file again",
            "tests/hub/test_reference_faults.py::test_killed_push_is_finished_by_the_next_run",
        ),
        (
            "quantising split or push killed",
            "finished by the next run, with the same bytes",
            "tests/cli/test_quantise.py::test_killed_run_is_finished_by_the_next",
        ),
        (
            "source that does not give a published pipeline's bytes",
            "not referred to, no copy is dropped",
            "tests/hub/test_refer.py::test_other_bytes_are_not_referred_to",
        ),
        (
            "copies dropped by a run that is stopped",
            "every stage can be fetched; the next run goes on",
            "tests/hub/test_refer.py::test_stopped_run_leaves_a_pipeline_that_works",
        ),
        (
            "two processes assemble the same",
            "fetched once",
            "tests/hub/test_by_reference.py::test_two_processes_assemble_a_file_once",
        ),
        (
            "neighbour with a wrong weight file",
            "found out by its sha256, fetched whole elsewhere",
            "tests/hub/test_neighbours.py::test_a_lying_neighbour_is_found_out_and_left",
        ),
        (
            "wrong bytes of a neighbour that another place completes",
            "fetched whole from that place",
            "tests/hub/test_neighbours.py::test_a_lie_that_another_place_ends_is_found_out",
        ),
        (
            "neighbour that stalls, drips, leaves, ends early or refuses in the middle of a file",
            "the rest comes from the Hub, with a note",
            "tests/hub/test_neighbours.py::test_the_hub_goes_on_where_a_neighbour_stops",
        ),
        (
            "neighbour that sends without end",
            "left at the file's size",
            "tests/hub/test_neighbours.py::test_more_bytes_than_a_file_has_are_refused",
        ),
        (
            "neighbour that does not answer, or is no node",
            "the Hub gives all, with a note",
            "tests/hub/test_neighbours.py::test_an_address_without_such_a_node_costs_a_note",
        ),
        (
            "neighbour that stays busy",
            "asked again, then the Hub is",
            "tests/hub/test_neighbours.py::test_a_neighbour_that_stays_busy_leaves_it_to_the_hub",
        ),
        (
            "nodes that need the same file at one moment",
            "fetched from the Hub once",
            "tests/hub/test_turns.py::test_each_file_comes_from_the_hub_once",
        ),
        (
            "neighbour that says it fetches a file, and does not come further",
            "fetched here",
            "tests/hub/test_turns.py::test_who_does_not_come_further_is_not_waited_for",
        ),
        (
            "neighbour that says it has more of a file than there is",
            "fetched here",
            "tests/hub/test_turns.py::test_who_claims_more_bytes_than_a_file_has_is_not_waited_for",
        ),
        (
            "neighbour that leaves while it fetches a file",
            "fetched here",
            "tests/hub/test_turns.py::test_who_leaves_is_not_waited_for",
        ),
        (
            "damaged list of known nodes",
            "counts as empty",
            "tests/hub/test_known_nodes.py::test_what_somebody_else_wrote_there_counts_as_nothing",
        ),
        (
            "fetch from a neighbour killed",
            "the next run takes the rest",
            "tests/hub/test_neighbours.py::test_a_kill_in_mid_transfer_is_finished_by_the_next_run",
        ),
        (
            "reader of weight files that takes nothing",
            "loses its place to others",
            "tests/node/test_file_servicer.py::test_a_reader_that_takes_nothing_loses_its_place",
        ),
        (
            "weight file that is damaged on the node that shares it",
            "not given",
            "tests/node/test_file_servicer.py::test_a_damaged_file_is_not_given_and_not_touched",
        ),
        (
            "flipped bit in transit, once and twice",
            "fetched again; then corrupt",
            "tests/hub/test_fetch.py::test_flipped_bit_twice_is_corrupt",
        ),
        (
            "`main` moves during a fetch",
            "nothing is mixed",
            "tests/hub/test_fetch.py::test_main_that_moves_during_a_fetch_mixes_nothing",
        ),
        ("shard's repo gone", "named, exit 1", "tests/cli/test_hub_ids.py::test_shard_that_is_gone"),
        (
            "redirect to another host",
            "the token stays with the Hub",
            "tests/hub/test_fetch.py::test_token_stays_with_the_hub",
        ),
        ("login page instead of an answer", "said", "tests/hub/test_fetch.py::test_login_page_instead_of_an_answer"),
        (
            "push killed",
            "finished by the next run",
            "tests/hub/test_publish_faults.py::test_push_is_finished_after_a_kill",
        ),
        (
            "two pushers",
            "the later is told to run again",
            "tests/hub/test_publish_faults.py::test_of_two_pushers_the_later_is_told_to_run_again",
        ),
        (
            "disk full before and during a fetch",
            "reported, nothing half-made",
            "tests/hub/test_fetch.py::test_disk_that_fills_up",
        ),
        (
            "fetch killed",
            "finished by the next run",
            "tests/hub/test_fetch.py::test_kill_in_the_middle_is_finished_by_the_next_run",
        ),
        ("two processes fetch the same", "fetched once", "tests/hub/test_fetch.py::test_two_processes_fetch_once"),
        ("read-only cache", "path and way out", "tests/hub/test_fetch.py::test_read_only_cache"),
        ("link out of the cache", "refused", "tests/hub/test_fetch.py::test_link_out_of_the_cache_is_refused"),
        ("secrets in messages", "none", "tests/cli/test_hub_ids.py::test_no_secret_in_messages"),
        ("repo that needs a token", "refused, exit 4", "tests/hub/test_fetch.py::test_private_repo_without_token"),
        (
            "Hub that stays busy during a push",
            "given up with a clear error",
            "tests/hub/test_publish_faults.py::test_push_gives_up_on_a_hub_that_stays_busy",
        ),
        (
            "Hub that says when to come back",
            "waited for, a minute at most",
            "tests/hub/test_fetch.py::test_retry_after_is_honoured_within_a_minute",
        ),
        ("stale partial files", "swept", "tests/hub/test_fetch.py::test_stale_partial_files_are_swept"),
        ("blob lost from the cache", "fetched again", "tests/hub/test_fetch.py::test_lost_blob_is_fetched_again"),
        (
            "a card with halves of UTF-16 pairs, dates, huge numbers or depth",
            "shown as far as JSON can hold it; lists still work",
            "tests/localhub/test_card.py::test_no_card_ends_a_listing",
        ),
        (
            "a hostile card that takes long to render",
            "rendered once while others are answered, or shown as text",
            "tests/localhub/test_pages.py::test_a_card_is_rendered_once",
        ),
        (
            "own Hub's database locked by another process",
            "reads go on, writes get 503 and when to ask again",
            "tests/localhub/test_catalog.py::test_reads_go_on_and_writes_are_told_later_while_another_process_writes",
        ),
        (
            "own Hub's disk full",
            "507, nothing half-made, and writes again once there is room",
            "tests/localhub/test_catalog.py::test_a_full_disk_is_507_for_a_route_that_writes_rows",
        ),
        (
            "own Hub's files left open to other users",
            "closed, and the signing key replaced",
            "tests/localhub/test_catalog.py::test_a_signing_key_that_others_could_read_is_replaced",
        ),
        (
            "client killed in the middle of an upload over Xet",
            "nothing of the file is visible; the next run finishes it",
            "tests/localhub/test_xet.py::test_an_upload_that_is_killed_goes_on",
        ),
        (
            "damaged or missing chunks in an upload over Xet",
            "refused, nothing of it stays, and the client's next run starts afresh",
            "tests/localhub/test_xet.py::test_what_does_not_fit_together_leaves_nothing",
        ),
        (
            "a small list of an upload over Xet that repeats its chunks until the disk is full",
            "refused before a byte is written",
            "tests/localhub/test_xet.py::test_a_list_repeats_chunks_only_so_often",
        ),
        (
            "chunks that the client remembers and the own Hub has deleted",
            "sent again",
            "tests/localhub/test_xet.py::test_a_client_whose_chunks_were_collected_sends_them_again",
        ),
        (
            "idle connections to the own Hub",
            "others are answered",
            "tests/localhub/test_connections.py::test_idle_connections_lock_nobody_out",
        ),
        (
            "handshakes with the own Hub that do not end",
            "others are answered",
            "tests/localhub/test_tls.py::test_clients_without_a_handshake_lock_nobody_out",
        ),
        (
            "own Hub's certificate expired, of another host or cluster, or no TLS at all",
            "said at once, with what to do; nothing is sent",
            "tests/localhub/test_tls.py::test_what_cannot_be_trusted_is_explained",
        ),
        (
            "plain HTTP to the own Hub's TLS port",
            "answered with what to change",
            "tests/localhub/test_tls.py::test_plain_requests_to_a_tls_port_are_answered",
        ),
        (
            "authority away when the own Hub's certificate is due",
            "a valid one is used on, with a warning",
            "tests/security/test_hub_certificate.py::test_a_usable_certificate_outlives_an_authority_that_is_away",
        ),
        (
            "upload over a slow line",
            "goes on while bytes come",
            "tests/localhub/test_connections.py::test_an_upload_over_a_slow_line_goes_on_as_long_as_it_comes",
        ),
    ],
    "Clients": [
        (
            "client that leaves while a node is away",
            "its request ends, no other one waits for it",
            "tests/gateway/test_lifecycle.py::test_a_client_that_leaves_while_a_node_is_away_holds_up_nobody",
        ),
        (
            "more idle connections than open files",
            "others are answered, the log stays short",
            "tests/gateway/test_connections.py::test_idle_connections_lock_nobody_out",
        ),
        (
            "header or body that drips, an answer that is not read",
            "the connection ends",
            "tests/gateway/test_connections.py::test_a_request_that_does_not_come_ends_its_connection",
        ),
        (
            "an answer that is read slowly",
            "sent whole",
            "tests/gateway/test_connections.py::test_an_answer_that_is_read_slowly_is_given_whole",
        ),
        (
            "a head that keeps nodes full",
            "a second one gets its share as sessions end",
            "tests/chain/test_two_heads.py::test_a_head_that_keeps_nodes_full_does_not_shut_another_out",
        ),
        (
            "tenants whose clients leave while nodes come and go",
            "no request hangs, nothing is left",
            "tests/soak/test_soak.py::test_tenants_whose_clients_leave_leave_nothing",
        ),
        (
            "messages to a node that cannot be parsed",
            "refused, a line in the log for many",
            "tests/node/test_servicer.py::test_messages_that_cannot_be_parsed_are_refused_and_fill_no_log",
        ),
        (
            "schemas that compile without end",
            "refused, others unaffected",
            "tests/gateway/test_shapes.py::test_schemas_without_end_hold_up_nobody",
        ),
        (
            "14 MB of text for a context of 1,024",
            "refused by its beginning",
            "tests/gateway/test_requests.py::test_a_text_that_cannot_fit_is_refused_soon",
        ),
        (
            "request given up",
            "freed on every node within a step",
            "tests/chain/test_chain.py::test_cancel_frees_the_session_on_every_node",
        ),
        (
            "reader who does not read",
            "the stream waits, others go on",
            "tests/chain/test_scheduler.py::test_a_reader_who_does_not_read_holds_nobody_up",
        ),
        (
            "more requests than sessions",
            "they wait, tenants take turns, then 429",
            "tests/chain/test_scheduler.py::test_requests_wait_for_room_and_tenants_take_turns",
        ),
        (
            "one step or one byte of credit",
            "slower, no deadlock, no token differs",
            "tests/chain/test_credit.py::test_a_window_of_one_step_or_byte_ends_in_no_deadlock",
        ),
        (
            "a stage slower than the step's deadline",
            "named, with the duration of its step",
            "tests/chain/test_credit.py::test_a_late_step_names_the_stage_that_keeps_it",
        ),
        (
            "request given up while it waits to be prefilled",
            "freed at once",
            "tests/chain/test_credit.py::test_a_prompt_given_up_while_others_are_prefilled_is_freed_at_once",
        ),
        (
            "nodes that keep KV in different forms",
            "refused before the first token",
            "tests/chain/test_quantized_kv.py::test_nodes_that_keep_kv_otherwise_are_refused",
        ),
        (
            "KV memory full",
            "parked sessions go, live ones never",
            "tests/chain/test_scheduler.py::test_parked_sessions_make_room",
        ),
        (
            "client of the gateway goes away",
            "freed on every node",
            "tests/gateway/test_lifecycle.py::test_a_client_that_goes_away_frees_everything",
        ),
        (
            "client that waits goes away",
            "makes room",
            "tests/gateway/test_lifecycle.py::test_a_waiting_client_that_goes_away_makes_room",
        ),
        (
            "body of unknown length",
            "bounded",
            "tests/gateway/test_requests.py::test_a_body_of_unknown_length_is_bounded",
        ),
        ("deep JSON", "refused", "tests/gateway/test_closed.py::test_depth_is_bounded"),
        ("no or wrong key, on every route", "401", "tests/gateway/test_guard.py::test_no_route_answers_without_a_key"),
        ("requests under another host's name", "403", "tests/gateway/test_guard.py::test_other_hosts_are_refused"),
        (
            "posts from other origins' pages",
            "403",
            "tests/gateway/test_guard.py::test_pages_of_other_origins_may_not_post",
        ),
        (
            "stop strings, biases and numbers out of bounds",
            "400, by name",
            "tests/text/test_stops.py::test_stops_out_of_bounds_are_refused",
        ),
        (
            "a grammar that fails",
            "ends its own request only",
            "tests/gateway/test_likelihoods.py::test_a_grammar_that_fails_ends_its_own_request",
        ),
        (
            "SIGTERM of a gateway",
            "answers on their way are finished",
            "tests/gateway/test_lifecycle.py::test_a_drain_finishes_what_is_on_its_way",
        ),
    ],
}

_BEGIN, _END = "<!-- written by tests/faults.py -->", "<!-- until here -->"


def tables() -> str:
    """The tables, one for each group."""
    parts = []
    for group, rows in FAULTS.items():
        lines = [f"| {fault} | {what} | `{test}` |" for fault, what, test in rows]
        parts.append("\n".join([f"### {group}", "", "| fault | what happens | test |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)


def written(text: str) -> str:
    """The document with its tables replaced by the current ones."""
    pattern = re.compile(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", re.DOTALL)
    assert pattern.search(text), "the document has no place for the tables"
    return pattern.sub(lambda _: f"{_BEGIN}\n\n{tables()}\n\n{_END}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
