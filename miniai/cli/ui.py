"""`miniai ui`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from miniai.cli.options import (
    AnyModel,
    Compiled,
    Device,
    Dtype,
    Embedding,
    Lora,
    OtherVae,
    PredictionType,
    Tokenizer,
    VaeSlicing,
    VaeTiling,
    Variant,
)
from miniai.recipes import generate_request


def ui(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where pictures go; it is made if it is not there.")] = (
        Path("pictures")
    ),
    model: AnyModel = None,
    lora: Lora = None,
    embedding: Embedding = None,
    vae: OtherVae = None,
    tokenizer: Tokenizer = None,
    variant: Variant = None,
    prediction_type: PredictionType = None,
    port: Annotated[int, typer.Option(help="Where the page is; 0 is any free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to answer on; 0.0.0.0 lets whoever reaches this machine paint.")
    ] = "127.0.0.1",
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compiled: Compiled = False,
    vae_tiling: VaeTiling = False,
    vae_slicing: VaeSlicing = False,
) -> None:
    """Paint in the browser: a page on this machine with the options of 'miniai generate', until Ctrl-C."""
    base = generate_request.GenerateRequest(
        prompt="",
        model=model,
        out=out,
        device=device,
        dtype=dtype,
        vae=vae,
        tokenizer=tokenizer,
        variant=variant,
        prediction_type=prediction_type,
        compiled=compiled,
        loras=tuple(generate_request.read_lora_option(one) for one in lora or ()),
        embeddings=tuple(embedding or ()),
        vae_tiling=vae_tiling,
        vae_slicing=vae_slicing,
    )
    generate_request.check_ranges(("--port", port, 0, 65535, ""))
    generate_request.check_request(base)
    from miniai.ui.painter import Painter
    from miniai.ui.server import PageServer

    with PageServer(host, port) as server:
        server.painter = Painter(base)
        typer.echo(server.address)
        if open_it:
            typer.launch(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            try:
                typer.echo("stopping when the step is done; once more to stop at once", err=True)
                server.painter.close()
                server.server_close()
            except KeyboardInterrupt:
                os._exit(130)  # Python would wait for the threads that compute the step and tell of it
