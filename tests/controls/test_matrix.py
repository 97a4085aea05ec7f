"""No check without a control, no control without a check, and the page says what the tests hold."""

import defects
import matrix
import test_bash_files_defects
import test_isolation_access_defects
import test_isolation_slot_defects
import test_resilience_defects

from sifproof.checks.engine import registry

CONTROLS = matrix.load()


def test_every_required_check_has_a_control():
    """Required for any driver; one that is advisory for all needs none."""
    red = {check for control in CONTROLS.values() for check in control.red}
    required = {c.id for c in registry.load().values() if not set(c.drivers) <= c.advisory.keys()}
    assert required - red == set()


def test_every_control_is_of_checks_that_there_are():
    assert {check for control in CONTROLS.values() for check in control.red} - registry.load().keys() == set()


def test_every_defect_of_the_server_that_takes_a_node_is_tried_on_one():
    """The others all are in ``test_server_defects.py``."""
    slots, resilience = test_isolation_slot_defects.SERVERS, test_resilience_defects.SERVERS
    access = test_isolation_access_defects.SERVERS
    tried = {*test_bash_files_defects.DEFECTS, *access, *slots, *resilience, "ignores-sigterm"}
    assert tried == {name for name, defect in defects.load().items() if defect.nomad}


def test_the_page_is_what_the_controls_say():
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page(), "python tests/controls/matrix.py writes it"
