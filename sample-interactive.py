"""Sample by hand, the model staying loaded: python sample-interactive.py [--resume RUN]

A menu in the terminal, or with --web a page in the browser. Ctrl-C while sampling goes back to the
menu, at the menu it leaves, as Ctrl-D does.
"""

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.locking import shared_folder
from sundae.editing.sampler import Sampler
from sundae.interactive.settings import Settings
from sundae.interactive.terminal import Terminal
from utils import add_common_flags, add_sampling_flags, choose_device, run_cli, sampler_options


def parse_args() -> argparse.Namespace:
    summary, details = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    add_common_flags(parser)
    flag = parser.add_argument
    flag("--nb-samples", type=int, metavar="N", help="number of images at a time, at first")
    add_sampling_flags(parser)
    flag("--out-dir", type=Path, metavar="DIR", help="receives a numbered folder for each sampling "
         "(default: samples/NAME_TIME; with --web a temporary one)")  # fmt: skip
    flag("--web", action="store_true", help="a page in the browser instead of the menu")
    web = parser.add_argument_group("the page (with --web)")
    web.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this "
                     "machine only); 0.0.0.0 is everywhere. Beyond this machine, a link with a "
                     "token is printed that lets in whoever has it")  # fmt: skip
    web.add_argument("--port", type=int, default=7860, metavar="N", help="port (default: "
                     "7860); 0 is any free one")  # fmt: skip
    web.add_argument("--auth", metavar="USER:PASSWORD", help="log-in that browsers ask for instead")
    web.add_argument("--no-auth", action="store_true", help="let in everybody who can reach --host")
    web.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further "
                     "host name that it is reached by, such as a proxy's; repeatable")  # fmt: skip
    return parser.parse_args()


def gradio_version() -> int:
    """Major version of the installed Gradio, 0 where there is none."""
    try:
        return int(version("gradio").split(".")[0])
    except PackageNotFoundError:
        return 0


def check_web_flags(args: argparse.Namespace) -> None:
    """UserError for what the page cannot be served with, before the model is loaded."""
    if gradio_version() < 6:
        raise UserError("--web needs Gradio 6: pip install -r requirements-web.txt")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port {args.port}: expected a number from 0 to {2**16 - 1}")
    if args.auth is not None and args.no_auth:
        raise UserError("--auth and --no-auth contradict each other; leave one out")
    if args.auth is not None and not all(args.auth.partition(":")):
        raise UserError("--auth: expected USER:PASSWORD, neither of them empty")


def main() -> None:
    args = parse_args()
    if args.web:
        check_web_flags(args)
    device = choose_device(args.no_cuda, args.quiet)
    sampler = Sampler.from_pretrained(**sampler_options(args, device))
    settings = Settings(sampler, sampler.cfg.sampling).changed(seed=args.seed)
    if args.web:
        from sundae.interactive.server import serve  # Gradio is an extra

        serve(
            settings,
            host=args.host,
            port=args.port,
            out_dir=args.out_dir,
            password=args.auth,
            open_to_all=args.no_auth,
            host_names=args.allow_host,
        )
        return
    name = sampler.cfg.trainer.exp_name
    with shared_folder(args.out_dir, Path("samples"), name) as out_dir:
        Terminal(settings, out_dir, bar=not args.quiet).run()


if __name__ == "__main__":
    run_cli(main)
