"""Two gRPC servers and a proxyless client: prints the servers' ports, then makes one call per line of input."""

import sys
from concurrent import futures

import grpc

METHOD = "/muster.Test/Who"


def serve(name):
    def who(request, context):
        return name.encode()

    handler = grpc.method_handlers_generic_handler("muster.Test", {"Who": grpc.unary_unary_rpc_method_handler(who)})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main():
    servers = [serve(name) for name in ("a", "b")]
    print(*(port for _, port in servers), flush=True)
    channel = grpc.insecure_channel("xds:///web")
    who = channel.unary_unary(METHOD)
    for _ in sys.stdin:
        try:
            print("ok", who(b"", timeout=2).decode(), flush=True)
        except grpc.RpcError as error:
            print("error", error.code().name, flush=True)


main()
