"""Arguments of the agents: what the documents of any year name is taken, what is of another kind is refused."""

import inspect
from pathlib import Path

import pytest

from flowfleet import Agent, DockerAgent, LocalAgent

CONFIG = "22222222-2222-4222-8222-222222222222"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LocalAgent(labels="gpu"), r"LocalAgent\(\) got labels='gpu', a text where a list of texts is meant"),
        (lambda: LocalAgent(labels="gpu"), r"write labels=\['gpu'\]"),
        (lambda: LocalAgent(import_paths="/x"), r"import_paths='/x', a text where a list of paths .*s=\['/x'\]"),
        (lambda: LocalAgent(labels=["a", 1]), r"labels=\['a', 1\], a list of other things where a list of texts"),
        (lambda: Agent(labels={"a": 1}), "a dict where a list of texts is meant"),
        (lambda: Agent(env_vars=["KEY=secret"]), r"env_vars=…, a list where a dict is meant: write env_vars=\{'NAME'"),
        (lambda: Agent(env_vars={"A=secret": "b"}), r"Agent\(\) got env_vars with A=…, which no variable can be named"),
        (lambda: Agent(env_vars={"": "secret"}), r"got env_vars with an empty name, .* write \{'NAME': 'value'\}"),
        (lambda: Agent(max_polls="3"), "max_polls='3', a text where a whole number is meant: write max_polls=3"),
        (lambda: Agent(max_polls=True), "max_polls=True, a bool where a whole number is meant"),
        (lambda: Agent(agent_config_id=["c"]), "agent_config_id=.*, a list where a text is meant"),
        (lambda: LocalAgent(show_flow_logs="no"), "show_flow_logs='no', a text where True or False is meant"),
        (lambda: DockerAgent(volumes="/v"), r"volumes=\['/v'\]"),
        (lambda: DockerAgent(networks="n"), r"networks=\['n'\]"),
        (lambda: DockerAgent(reg_allow_list="r"), r"reg_allow_list=\['r'\]"),
        # the order of 2021
        (lambda: LocalAgent(["/path"]), r"got name=\['/path'\], a list where a text is meant"),
        (lambda: Agent("config", "name", ["x"]), "labels='name', .* of 2021, .* agent_config_id, give them by keyword"),
        (lambda: LocalAgent(None, None, ["x"], {"K": "v"}), "env_vars=…, a list .* of 2021, .* by keyword"),
        (lambda: LocalAgent(*[None] * 4, ["/p"]), "show_flow_logs=.*, a list .* of 2021, .* by keyword"),
        (lambda: Agent(*[None] * 6, True), r"Agent\(\) takes 6 arguments by position \(name, .* got 7: .* by keyword"),
        (lambda: DockerAgent(*[None] * 7, "tcp://h", True), "no_pull='tcp://h', a text .* of 2021"),
        (lambda: Agent(CONFIG), f"has the form of an agent config's id: write agent_config_id='{CONFIG}'"),
        # options whose place an argument takes
        (lambda: LocalAgent(label=["x"]), r"no argument 'label': write labels=\[…\]"),
        (lambda: Agent(deploy="process"), "no argument 'deploy'"),
        (lambda: LocalAgent(base_url="tcp://h"), "no argument 'base_url': it is one of DockerAgent"),
        # a service
        (lambda: LocalAgent.generate_supervisor_conf("T", "l"), r"generate_supervisor_conf\(\) got labels='l', a text"),
        (lambda: LocalAgent.generate_supervisor_conf(env_vars=["A=secret"]), "a list where a dict is meant"),
        (lambda: LocalAgent.generate_supervisor_conf(env_vars={"A=B": "secret"}), "got env_vars with A=…"),
        (lambda: LocalAgent.generate_supervisor_conf("T", key="K"), "a token and a key, .* give the key only"),
        (lambda: LocalAgent.generate_supervisor_conf(env_vars={"A": None}), "a unit can take no variable away"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_than_its_argument_is_refused_in_one_sentence(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_can_be_read_as_the_argument_is_taken():
    agent = LocalAgent(labels=(label for label in ["a", "b"]), import_paths=[Path("/p")], show_flow_logs=1, name=None)
    assert agent.labels[:2] == ["a", "b"]
    assert (agent.import_paths, agent.show_flow_logs) == (["/p"], True)
    assert Agent(agent_config_id=CONFIG, labels={"x"}).labels == ["x"]


ONE_RUN = "flow_run"
#: the arguments of the methods by their names, as the documents of a year give them
DOCUMENTED = {
    "0.7, 2019": {
        Agent: {"agent_connect": "", "agent_process": "tenant_id", "deploy_flows": "flow_runs", "heartbeat": "",
                "query_flow_runs": "tenant_id", "query_tenant_id": "", "start": "", "update_states": "flow_runs"},
        DockerAgent: {"deploy_flows": "flow_runs", "populate_env_vars": "flow_run"},
    },
    "0.9, 2020": {
        Agent: {"agent_process": "executor tenant_id", "deploy_and_update_flow_run": ONE_RUN, "deploy_flow": ONE_RUN,
                "mark_failed": "flow_run exc", "on_flow_run_deploy_attempt": "fut flow_run_id", "on_shutdown": "",
                "query_flow_runs": "tenant_id", "update_state": "flow_run deployment_info"},
        LocalAgent: {"populate_env_vars": ONE_RUN, "heartbeat": "", "deploy_flow": ONE_RUN,
                     "generate_supervisor_conf": "token labels import_paths show_flow_logs"},
        DockerAgent: {"stream_container_logs": "container_id"},
    },
    "0.13, 2020": {
        Agent: {"agent_process": "executor", "cleanup": "", "query_flow_runs": "", "setup": "", "on_startup": "",
                "run_heartbeat_thread": "", "start": "_loop_intervals", "update_state": ONE_RUN},
        LocalAgent: {"generate_supervisor_conf": "token labels env_vars import_paths show_flow_logs"},
        DockerAgent: {"stream_flow_logs": "container_id"},
    },
    "1.4.1, 2022": {
        Agent: {"deploy_flow": ONE_RUN, "heartbeat": "", "on_shutdown": "", "on_startup": "", "start": ""},
        LocalAgent: {"populate_env_vars": "flow_run run_config", "generate_supervisor_conf":
                     "token labels env_vars import_paths show_flow_logs key tenant_id agent_config_id"},
        DockerAgent: {"populate_env_vars": "flow_run image run_config"},
    },
}  # fmt: skip
#: their own arguments, by position up to 2020 and by keyword ever since
CONSTRUCTORS = {
    Agent: "name labels env_vars max_polls agent_address no_cloud_logs",
    LocalAgent: "name labels env_vars import_paths show_flow_logs hostname_label max_polls agent_address no_cloud_logs",
    DockerAgent: "name labels env_vars max_polls agent_address no_cloud_logs base_url no_pull volumes show_flow_logs "
    "network docker_interface",
}


@pytest.mark.parametrize("year", DOCUMENTED)
def test_each_method_takes_what_the_documents_of_a_year_name(year):
    for cls, methods in DOCUMENTED[year].items():
        for name, names in methods.items():
            method, given = getattr(cls(), name), names.split()
            inspect.signature(method).bind(*given)
            inspect.signature(method).bind(**dict.fromkeys(given))


@pytest.mark.parametrize("cls", CONSTRUCTORS)
def test_each_class_has_the_arguments_of_2020_by_position_and_all_by_keyword(cls):
    parameters, ordered = inspect.signature(cls).parameters, CONSTRUCTORS[cls].split()
    assert list(parameters)[: len(ordered)] == ordered
    assert "agent_config_id" in parameters
