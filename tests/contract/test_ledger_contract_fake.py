"""The Ledger port's promises on the simulation's fake: the same tests, but for those about waiting, threads and disks."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from broker.ledger.entry import leaf_hash
from tests.contract import test_ledger_contract as contract
from tests.contract import test_limits_contract as limits
from tests.fakes import Disk, FakeLedger
from tests.moved_clock import MovedClock

INCARNATION = "a" * 32

test_a_new_ledger = contract.test_a_new_ledger_begins_with_the_entry_that_names_its_incarnation
test_p2_consecutive = contract.test_p2_indices_are_consecutive_under_many_threads
test_p2_exact_bytes = contract.test_p2_entries_are_kept_as_the_exact_bytes_that_their_index_was_put_into
test_entries = contract.test_entries_returns_as_many_as_exist
test_p3_moved_version = contract.test_p3_an_append_that_expects_a_moved_policy_version_is_refused_and_nothing_written
test_p3_what_moves = contract.test_p3_policy_blocks_and_revoked_keys_move_the_version_and_single_revocations_do_not
test_a_repeat = contract.test_a_repeated_request_id_gets_the_first_answer_and_does_nothing_twice
test_a_repeat_first = contract.test_a_repeat_is_recognised_before_version_and_guards
test_a_request_id = contract.test_a_request_id_is_refused_for_something_else_and_belongs_to_its_principal
test_spellings = contract.test_request_ids_of_any_spelling_are_told_apart
test_a_run = contract.test_a_run_opens_is_kept_and_closed_by_a_revocation_that_names_it
test_a_run_of_another = contract.test_a_run_of_another_is_not_found
test_runs = contract.test_runs_are_listed_newest_first_and_by_partner
test_blocks = contract.test_blocks_stand_until_exactly_they_are_lifted
test_a_revoked_key = contract.test_a_revoked_key_is_trusted_no_more
test_derived = contract.test_b3_what_is_derived_from_a_token_is_refused_once_the_token_or_an_ancestor_is_revoked
test_the_newest_policy = contract.test_the_newest_policy_is_in_force_with_its_version
test_changes = contract.test_changes_are_what_verifiers_must_learn_from_an_index_on
test_of_a_partner = contract.test_revocations_that_name_a_partner_are_found_by_it_and_no_others
test_pruned = contract.test_what_can_matter_no_more_is_pruned_and_the_ledger_keeps_everything

test_runs_are_kept_whole = limits.test_what_a_run_was_opened_with_is_kept
test_a_rate = limits.test_a_rate_is_refused_with_its_name_and_the_time_when_there_is_room
test_live_tokens = limits.test_live_tokens_are_room_again_when_they_end_or_their_run_does
test_scopes = limits.test_each_scope_is_counted_by_itself
test_counted_once = limits.test_a_refused_write_counts_nothing_and_a_repeated_one_once
test_tokens_per_run = limits.test_tokens_per_run_are_counted_for_the_whole_run
test_live_runs = limits.test_live_runs_are_those_neither_closed_nor_lapsed
test_lapses = limits.test_a_run_lapses_once_and_not_if_it_was_kept_or_closed
test_counts_pruned = limits.test_counts_are_pruned_when_they_can_matter_no_more


@dataclass
class FakeHome:
    """As `tests.stores.Home`: each `open` is one more broker on the same disk."""

    kind: str = "fake"
    clock: MovedClock = field(default_factory=MovedClock)
    disk: Disk = field(default_factory=lambda: Disk.new(INCARNATION, contract.NOW))

    def open(self, **_: Any) -> FakeLedger:
        return FakeLedger(self.disk, self.clock)

    def sql(self, statement: str) -> list[Any]:
        """Answer what the contract asks behind the ledger's back."""
        rows = [(index, entry, leaf_hash(entry)) for index, entry in enumerate(self.disk.entries)]
        return {
            "SELECT idx, entry, leaf_hash FROM ledger ORDER BY idx": rows,
            "SELECT entry, leaf_hash FROM ledger WHERE idx = 1": [row[1:] for row in rows[1:2]],
            "SELECT size FROM head": [(self.disk.head.size,)],
        }[statement]


@pytest.fixture
def home() -> FakeHome:
    return FakeHome()


@pytest.fixture
def store(home: FakeHome) -> FakeLedger:
    return home.open()
