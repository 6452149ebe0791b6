"""Eardrum: serves an audio-language model behind the OpenAI API. `python server.py --help` lists every setting.

Wiring only. All imports of ours stand inside `main`: worker and decode processes import this file again.
"""

from __future__ import annotations

import signal
import sys


def main() -> int:
    # The imports take seconds, and the first process of a container gets no signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from pydantic import ValidationError  # noqa: PLC0415
    from pydantic_settings import CliApp, SettingsError  # noqa: PLC0415

    from config import Settings, configure_logging  # noqa: PLC0415

    try:
        settings = CliApp.run(Settings)
    except (ValidationError, SettingsError) as error:
        print(f"server.py: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level)
    return serve(settings)


def serve(settings) -> int:  # type: ignore[no-untyped-def]
    from api.spec import AudioSpec  # noqa: PLC0415
    from audio.spool import open_spool  # noqa: PLC0415
    from lifecycle import EardrumServer, check_spool  # noqa: PLC0415
    from supervision import ServerFailed  # noqa: PLC0415
    from worker.lit_api import AudioChatAPI  # noqa: PLC0415
    from worker.loop import EngineLoop  # noqa: PLC0415

    with open_spool(settings.spool_dir, settings.queue_bytes) as spool:
        spec = AudioSpec(settings, spool)
        api = AudioChatAPI(settings, spool, spec=spec, loop=EngineLoop(settings))
        try:
            check_spool(spool)
            EardrumServer(settings, api, spec, spool).serve()
        except ServerFailed as error:
            failure = error
        else:
            return 0
    print(f"server.py: {failure}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
