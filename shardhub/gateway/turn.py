"""One turn of a conversation: a parsed chat request that can begin its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from shardhub.chain.request import Grammar
from shardhub.errors import PromptError
from shardhub.gateway.answers import Answer
from shardhub.gateway.asks import Ask, Tools
from shardhub.gateway.conversations import messages_of, switches_of, tools_of
from shardhub.gateway.defaults import kept_of_prompt, parameters_of
from shardhub.gateway.deferred import DeferredGrammar
from shardhub.gateway.deltas import Delta
from shardhub.gateway.documents import documents_of
from shardhub.gateway.endings import CONTINUE, PROMPT, ending_of
from shardhub.gateway.masks import end_ids_of, rules_of
from shardhub.gateway.merge import merge
from shardhub.gateway.refusals import Refusal, refusal_of, refusal_of_fields
from shardhub.gateway.schema import ChatRequest
from shardhub.gateway.segments import Segmenter
from shardhub.gateway.service import Service, cut_remark, in_thread
from shardhub.gateway.shapes import shape_of, shape_of_calls
from shardhub.gateway.structured import LlGrammar
from shardhub.gateway.thinking import Wish
from shardhub.gateway.tool_choice import choice_of
from shardhub.gateway.wishes import Directed, directed, wish_of
from shardhub.text.encoder import MAX_IDS
from shardhub.text.template import Ending
from shardhub.text.tokenizer import RenderedChat


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A parsed chat request.

    Attributes:
        opening: The text that the template wrote after the last message.
        progress: The number of prompt ids processed, and their total.
        remarks: Remarks for the client, for the warning header.
    """

    service: Service
    body: ChatRequest
    ask: Ask
    grammar: LlGrammar | None
    opening: str
    progress: list[int]
    remarks: tuple[str, ...] = ()

    def begin(self, index: int = 0) -> Answer:
        """Start one choice, with its own seed, grammar and segmenter."""

        def moved(done: int, total: int) -> None:
            self.progress[:] = [done, total]

        head = self.service.head
        segmenter = self._segmenter()
        ask = replace(
            self.ask,
            parameters=replace(self.ask.parameters, choice=index),
            segmenter=segmenter,
            grammar=self._grammar(),
        )
        return Answer(head.scheduler, head.tokenizer, ask, moved)

    def _segmenter(self) -> Segmenter | None:
        if self.grammar is not None and not self.is_deferred:
            return None  # all of the output is the answer
        tools = self.ask.tools
        return self.service.segmenters.make(
            self.opening,
            functions=None if tools is None else [tool["function"]["name"] for tool in tools.known],
            calls=() if tools is None or tools.forced else tools.formats.tags,
            is_patient=not self.body.stream and not self.ask.stops,
        )

    def _grammar(self) -> Grammar | None:
        if self.grammar is None:
            return None
        grammar, segmenter = self.grammar.copy(), self._segmenter()
        if segmenter is None:
            return grammar
        return DeferredGrammar(grammar, segmenter, self.service.head.tokenizer.detokenizer())

    @property
    def is_deferred(self) -> bool:
        """Whether the grammar begins after the reasoning, because the template does not turn reasoning off.

        Models with channels are the exception: a forced call is their whole output.
        """
        segmenters, tools = self.service.segmenters, self.ask.tools
        is_forced = tools is not None and bool(tools.forced)
        return segmenters.starts_in_reasoning(self.opening) and not (segmenters.speaks_harmony and is_forced)

    def comment(self) -> str:
        """The keep-alive comment: how much of the prompt is processed."""
        return f"keepalive {self.progress[0]}/{self.progress[1]}"


def chat_request(**fields: Any) -> ChatRequest:
    """Make a chat request from the fields of another API's request.

    Raises:
        Refusal: A field is invalid.
    """
    try:
        return ChatRequest(**fields)
    except ValidationError as error:
        raise refusal_of_fields(error.errors()) from error


async def understand(service: Service, body: ChatRequest, tenant: str) -> Turn:
    """Parse and validate a request completely before anything runs.

    Args:
        tenant: The digest of the caller's key.

    Raises:
        Refusal: The request cannot be served.
    """
    messages = messages_of(body.messages, strict=service.settings.strict_content)
    choice = choice_of(body.tool_choice, body.tools)
    shown, forced = tools_of(choice.shown), choice.forced
    ending = ending_of(body.model_dump(include={CONTINUE, PROMPT}), messages)
    switches = switches_of(body.chat_template_kwargs)
    switches |= documents_of(body, service.head.tokenizer.chat_template)
    parameters = parameters_of(
        body, service.defaults, vocab_size=service.vocab_size, top_logprobs=body.top_logprobs or 0
    )
    end_ids = end_ids_of(body, service.head.tokenizer)
    if not body.ignore_eos:
        end_ids |= service.segmenters.end_ids
    tokenizer, num_ids = service.head.tokenizer, service.vocab_size
    rules = await in_thread(partial(rules_of, body, tokenizer, num_ids=num_ids, end_ids=end_ids))
    shape = shape_of_calls(forced) if forced else shape_of(body)
    grammar = await service.structured.grammar(shape) if shape is not None else None
    # Unless the client asks for it, a model does not think before a structured answer, if the template can turn it off.
    directions = await _directed(service, body, messages, switches, Wish(thinks=False) if grammar else Wish())
    requested = body.asked_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    kept = kept_of_prompt(body, service.max_context, requested=requested)
    max_ids = service.max_context if kept is None else MAX_IDS
    rendered = await _rendered(service, directions, shown, ending=ending, max_ids=max_ids)
    names = [tool.function.name for tool in forced]
    prompt = [*rendered.ids, *await in_thread(lambda: service.segmenters.lead(names))]
    if kept is not None:
        prompt = prompt[-kept:]
    service.check_ids(prompt, param="messages")
    known = Tools(
        formats=service.call_formats,
        known=shown or (),
        forced=names,
        one_call=body.parallel_tool_calls is False,
    )
    limit_param = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    if requested == 0:
        raise Refusal(400, "max_tokens must be at least 1.", param="max_tokens")
    max_tokens = service.max_tokens(requested, [prompt], param="messages", limit_param=limit_param)
    ask = Ask(
        prompt=prompt,
        parameters=parameters,
        max_tokens=max_tokens,
        stops=body.stops,
        end_ids=end_ids,
        tenant=tenant,
        continues=ending == "prefix",
        keeps_stop=bool(body.include_stop_str_in_output),
        rules=rules,
        tools=known if shown else None,
        likelihoods=bool(body.logprobs),
    )
    remark = cut_remark(requested, max_tokens, param=limit_param)
    return Turn(
        service=service,
        body=body,
        ask=ask,
        grammar=grammar,
        opening=rendered.opening,
        progress=[0, len(prompt)],
        remarks=tuple(filter(None, (remark, directions.remark))),
    )


async def num_prompt(service: Service, body: ChatRequest) -> int:
    """Number of tokens of a request's prompt.

    Raises:
        Refusal: The messages cannot be rendered.
    """
    tools = tools_of(choice_of(body.tool_choice, body.tools).shown)
    switches = switches_of(body.chat_template_kwargs)
    messages = messages_of(body.messages, strict=service.settings.strict_content)
    ending = ending_of(body.model_dump(include={CONTINUE, PROMPT}), messages)
    directions = await _directed(service, body, messages, switches, Wish())
    return len((await _rendered(service, directions, tools, ending=ending, max_ids=MAX_IDS)).ids)


async def deltas_of(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Delta | None], None]:
    """Yield the deltas of all choices with their index, and None after a choice's last. One choice needs no queue."""
    if len(answers) > 1:
        async with aclosing(merge([partial(aiter, answer) for answer in answers], at_once=len(answers))) as items:
            async for index, delta in items:
                yield index, delta
        return
    async for only in answers[0]:
        yield 0, only
    yield 0, None


async def _directed(
    service: Service,
    body: ChatRequest,
    messages: list[dict[str, Any]],
    switches: dict[str, Any],
    usual: Wish,
) -> Directed:
    """The conversation with the switches for thinking.

    Args:
        usual: The wish if the client has none.
    """
    wish = wish_of(body)
    if Wish() == wish == usual and not switches:
        return Directed(messages=messages, switches={})
    thinking = await in_thread(lambda: service.thinking)
    directions = directed(thinking, usual if wish == Wish() else wish, messages, switches)
    # A model that always or never thinks fulfils a plain wish for just that.
    thinks = service.segmenters.thinks
    is_met = wish == Wish() or (thinking.is_off(wish) and not thinks) or (wish == Wish(thinks=True) and thinks)
    return replace(directions, remark="") if is_met else directions


async def _rendered(
    service: Service, directions: Directed, tools: list[dict[str, Any]] | None, *, ending: Ending, max_ids: int
) -> RenderedChat:
    tokenizer = service.head.tokenizer
    try:
        return await in_thread(
            lambda: tokenizer.render_chat(
                directions.messages, tools=tools, ending=ending, max_ids=max_ids, **directions.switches
            )
        )
    except PromptError as error:
        raise refusal_of(error, param="messages") from error
