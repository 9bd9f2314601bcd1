"""`broker status` and `trust`."""

from google.protobuf.duration_pb2 import Duration

from broker.v1 import status_pb2
from tests.edge.cli.conftest import Program
from tests.edge.cli.feeding import Realm
from tests.edge.cli.served import Served

STATUS = status_pb2.GetStatusResponse(
    version="0.1.0",
    incarnation="inc",
    head=1234,
    policy_version=7,
    minting=False,
    problems=["no key for realm research: \x1b[31mVault\x1b[0m is sealed"],
    realms=[
        status_pb2.RealmStatus(
            realm="evaluation", key="kid-1", key_signs_for=Duration(seconds=754), verifiers=3, revocations=9
        ),
        status_pb2.RealmStatus(realm="research"),
    ],
)


def test_the_status_is_told(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = STATUS
    text = broker("status").stdout
    lines = text.splitlines()
    assert lines[0] == "broker 0.1.0, ledger inc with 1234 entries, policy version 7"
    assert lines[1] == "minting: no"
    assert lines[2] == "problem: no key for realm research: \\x1b[31mVault\\x1b[0m is sealed"
    assert lines[4].split() == ["evaluation", "kid-1", "12", "m", "34", "s", "3", "9"]
    assert lines[5].split() == ["research", "none", "0", "0"]


def test_the_status_as_json(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = STATUS
    answer = broker.json("status")
    assert list(answer) == ["version", "incarnation", "head", "policy_version", "minting", "problems", "realms"]
    assert answer["realms"][0] == {
        "realm": "evaluation",
        "key": "kid-1",
        "key_signs_for_s": 754,
        "verifiers": 3,
        "revocations": 9,
    }


def test_a_broker_without_realms_has_a_status_too(broker: Program, served: Served) -> None:
    served.answers["GetStatus"] = status_pb2.GetStatusResponse(minting=True)
    assert "minting: yes" in broker("status").stdout


def test_the_trust_file_is_printed_as_it_is(broker: Program, served: Served, realm: Realm) -> None:
    served.answers["GetTrust"] = status_pb2.GetTrustResponse(document=realm.document)
    assert broker("trust").stdout == realm.document
    assert broker.json("trust", "--realm", "evaluation")["realms"]["evaluation"]["audience"] == "evaluation"
    assert served.last.request.realm == "evaluation"


def test_a_trust_document_that_is_none_is_a_failure(broker: Program, served: Served) -> None:
    served.answers["GetTrust"] = status_pb2.GetTrustResponse(document="rubbish")
    result = broker("trust")
    assert (result.exit_code, result.stdout) == (1, "")
