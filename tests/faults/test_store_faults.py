"""Faults on a simulated disk: crashes, damage, refusals, each at every operation; and mutants that prove the checks."""

import errno

import pytest
from faulttools import checks, damage_at_rest, enumeration
from faulttools.mutants import MUTANTS, mutated


def check(count, report):
    count.add_report(report)
    count.close()


def test_a_crash_at_every_operation_loses_no_save_that_returned(tally):
    report = enumeration.after_crashes(90)
    assert report.tried >= 20_000
    check(tally("simulated crash or power cut at every operation"), report)


def test_damage_then_a_crash_in_the_run_that_goes_on(tally):
    report = enumeration.after_damage_and_crash(per_operation=6, damages=30)
    assert report.tried >= 10_000
    check(tally("simulated damage, then a crash"), report)


def test_a_run_that_dies_again_and_again_ends_as_if_nothing_had_happened(tally):
    check(tally("simulated kills, again and again"), enumeration.crash_in_process(seed=3, kills=400))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES], ids=errno.errorcode.get)
def test_a_refusal_leaves_the_old_state_and_says_what_to_do(code, tally):
    """Every sixth operation here; all of them in the slow tests."""
    check(tally(f"simulated {errno.errorcode[code]}"), enumeration.after_refusals((code,), every=6, go_on_every=3))


def test_no_bit_flip_is_silent(tally):
    check(tally("bit flips of every state file"), damage_at_rest.silent_damage(damage_at_rest.flips, 10_000))


def test_no_truncation_is_silent(tally):
    check(tally("truncations of every state file"), damage_at_rest.silent_damage(damage_at_rest.truncations, 1_000))


@pytest.mark.parametrize("name", sorted(checks.CHECKS))
def test_the_store_passes_the_checks_that_its_mutants_must_fail(name):
    assert checks.CHECKS[name]() == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant):
    with mutated(mutant) as mutated_checks:
        try:
            found = mutated_checks.CHECKS[mutant.check]()
        except Exception as error:
            found = [repr(error)]
    assert found, f"{mutant.name}: nothing notices it"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_million_crashes(tally, seed):
    report = enumeration.after_crashes(1_125, seed=seed, go_on_every=200)
    check(tally(f"simulated crash or power cut at every operation, many ({seed})"), report)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", range(1, 5))
def test_much_damage_then_crashes(tally, seed):
    report = enumeration.after_damage_and_crash(per_operation=20, damages=75, seed=1000 * seed)
    check(tally(f"simulated damage, then a crash, many ({seed})"), report)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_refusal(tally):
    check(tally("simulated ENOSPC, EIO, EDQUOT, EACCES at every operation"), enumeration.after_refusals())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_many_times(tally):
    check(tally("simulated kills, again and again, many"), enumeration.crash_in_process(seed=4, kills=5_000))
