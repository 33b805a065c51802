"""A comparison as a stream of events, and as one JSON object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from api.generation.compare_schemas import Column, Comparison
from api.generation.run import Generation
from api.generation.streams import batches
from api.http.sse import dumps, event


async def comparison(generation: Generation, names: Sequence[str], seed: int) -> Comparison:
    """The reply, once every column has ended."""
    reply = await generation.collect()
    return Comparison(
        id=reply["id"],
        model=generation.model,
        seed=seed,
        prompt_tokens=generation.answers[0].prompt_tokens,
        columns=[
            Column(
                index=i,
                name=name,
                text=reply["choices"][i]["message"]["content"],
                finish_reason=answer.finish_reason,
                tokens=answer.tokens,
                prompt_tokens=answer.prompt_tokens,
                alignez=generation.personal[i].report(),
            )
            for i, (name, answer) in enumerate(zip(names, generation.answers, strict=True))
        ],
    )


async def compare_events(generation: Generation, names: Sequence[str], seed: int) -> AsyncGenerator[bytes, None]:
    """Blocks of server-sent events of all columns. Raises: as `Generation.open`, before the first block."""
    await generation.open()
    columns = [{"index": i, "name": name} for i, name in enumerate(names)]
    heads = [f'event: token\ndata: {dumps(column)[:-1]},"text":' for column in columns]
    try:
        yield event({"id": generation.id, "model": generation.model, "seed": seed, "columns": columns}, name="columns")
        async for batch in batches(generation.streams, generation.served.pace):
            generation.timing.token()
            out: list[str] = []
            for index, chunk in batch:
                answer = generation.answers[index]
                generation.add(answer, chunk)
                if chunk.text:
                    out.append(f"{heads[index]}{dumps(chunk.text)}}}\n\n")
                if answer.finish_reason is not None:
                    ended = {
                        **columns[index],
                        "finish_reason": answer.finish_reason,
                        "tokens": answer.tokens,
                        "prompt_tokens": answer.prompt_tokens,
                        "alignez": generation.personal[index].report(),
                    }
                    out.append(f"event: column\ndata: {dumps(ended)}\n\n")
            if out:
                yield "".join(out).encode("ascii")
        yield event({"prompt_tokens": generation.answers[0].prompt_tokens}, name="end")
    finally:
        generation.end()
