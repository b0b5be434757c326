"""The server under the name and with the flags and rules of the original; `qwen-vl serve` does the work."""

from collections.abc import Sequence

from qwen_vl.cli.run import run


def main(argv: Sequence[str]) -> None:
    """Serve as the original's flags say; further flags go to `qwen-vl serve`."""
    from qwen_vl.cli import parsers, serve

    parser = parsers.Parser(
        prog="openai_api.py", allow_abbrev=False, epilog="Takes the flags of `qwen-vl serve` as well."
    )
    parser.add_argument("-c", "--checkpoint-path", default="Qwen/Qwen-VL-Chat", help="folder or hub name of a model")
    parser.add_argument("--cpu-only", action="store_true", help="run on the CPU")
    parser.add_argument("--server-port", default="8000", help="port (default: %(default)s)")
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    args, others = parser.parse_known_args(argv)
    device = ["--device", "cpu"] if args.cpu_only else []
    place = ["--host", args.server_name, "--port", args.server_port, "--served_model_name", "gpt-3.5-turbo"]
    serve.main([args.checkpoint_path, *place, *device, *others], as_original=True)


if __name__ == "__main__":
    run(main)
