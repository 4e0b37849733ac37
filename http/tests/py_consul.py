"""Drives a server with py-consul: what a Python service does from its start to its end."""

import sys

import consul

host, port = sys.argv[1], int(sys.argv[2])
client = consul.Consul(host=host, port=port)

# A service with its check, and a check by itself.
check = consul.Check.http("http://127.0.0.1:8080/health", "10s", timeout="2s", deregister="90m")
assert client.agent.service.register("web", service_id="web-1", port=8080, tags=["a"], meta={"k": "v"}, check=check)
assert client.agent.services()["web-1"]["Port"] == 8080
assert client.agent.check.register("beat", consul.Check.ttl("30s"), service_id="web-1")
assert client.agent.check.ttl_pass("service:web-1", "well")
assert client.agent.checks()["service:web-1"]["Output"] == "well"
assert client.agent.service.maintenance("web-1", "true", "disk")
assert client.agent.self()["Config"]["Datacenter"] == "dc1"
assert client.agent.members()[-1]["Tags"]["role"] == "consul"

# Something without an agent, in the catalog.
service = {"ID": "pg", "Service": "postgres", "Tags": ["main"], "Port": 5432}
up = {"CheckID": "up", "Name": "up", "Status": "passing", "ServiceID": "pg"}
assert client.catalog.register("db1", "10.2.0.1", service=service, check=up)
index, nodes = client.catalog.nodes()
assert int(index) >= 1 and nodes[-1]["Node"] == "db1", (index, nodes)
assert client.catalog.datacenters() == ["dc1"]
assert client.catalog.services()[1]["postgres"] == ["main"]
assert client.catalog.service("postgres", tag="main")[1][0]["ServicePort"] == 5432
assert client.catalog.node("db1")[1]["Services"]["pg"]["Service"] == "postgres"

# Health, and a wait that ends with the same answer.
index, entries = client.health.service("postgres", passing=True)
assert entries[0]["Checks"][-1]["Status"] == "passing", entries
again, same = client.health.service("postgres", index=index, wait="100ms", passing=True)
assert (again, same) == (index, entries)
assert client.health.checks("postgres")[1][0]["CheckID"] == "up"
assert client.health.node("db1")[1][0]["CheckID"] == "up"
assert any(check["CheckID"] == "up" for check in client.health.state("passing")[1])
assert client.status.leader() == "10.0.0.7:8300"
assert client.status.peers() == ["10.0.0.7:8300"]

# The end.
assert client.catalog.deregister("db1")
assert client.agent.service.deregister("web-1")
assert client.agent.services() == {}
assert client.agent.service.deregister("web-1") is False, "404 is False in this client"
try:
    client.agent.service.register("my_web")
    raise SystemExit("a name that is no DNS label was taken")
except consul.exceptions.BadRequest as error:
    assert "'_' at position 3" in str(error), error
