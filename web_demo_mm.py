"""The web page under the name and with the flags of the original; `qwen-vl demo` does the work."""

from collections.abc import Sequence

from qwen_vl.cli.run import run


def main(argv: Sequence[str]) -> None:
    """Serve the page as the original's flags say; further flags go to `qwen-vl demo`."""
    from qwen_vl.cli import demo, parsers

    parser = parsers.Parser(
        prog="web_demo_mm.py", allow_abbrev=False, epilog="Takes the flags of `qwen-vl demo` as well."
    )
    parser.add_argument("-c", "--checkpoint-path", default="Qwen/Qwen-VL-Chat", help="folder or hub name of a model")
    parser.add_argument("--cpu-only", action="store_true", help="run on the CPU")
    parser.add_argument("--server-port", default="8000", help="port (default: %(default)s)")
    parser.add_argument("--server-name", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    args, others = parser.parse_known_args(argv)
    device = ["--device", "cpu"] if args.cpu_only else []
    place = ["--host", args.server_name, "--port", args.server_port]
    demo.main([args.checkpoint_path, *place, *device, *others])


if __name__ == "__main__":
    run(main)
