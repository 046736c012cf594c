#!/usr/bin/env python3
"""Uses `firp serve` through the programs that people have: real clients from PyPI.

usage: clients.py FIRP MODEL [--only WORD] [--with lm-eval]

The clients are installed, in the versions that are written here, into $FIRP_CACHE/clients (default ~/.cache/firp).
Each case asks as the client's own manual says, and compares with what the server answers to a plain request. `--with
lm-eval` tries EleutherAI's harness, too, which installs some 900 MB. Status 77: skipped, as PyPI is out of reach or
there is no model. SmolLM2 is small: cases hold what the server promises, and not that an answer is a good one.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

from served import Served

CACHE = pathlib.Path(os.environ.get("FIRP_CACHE", pathlib.Path.home() / ".cache/firp"))
PACKAGES = ["openai==3.57.0", "anthropic==2.14.0", "langchain-openai==1.7.4", "langchain-core==1.8.3", "llm==0.36",
            "jsonschema==4.26.0", "pydantic==2.14.4"]  # fmt: skip
LM_EVAL_PACKAGES = ["lm-eval[api]==0.4.13", "transformers==5.24.0", "tokenizers==0.23.3", "gguf==0.19.0"]

# SmolLM2's own template has no words for tools. This one writes them as Hermes and Qwen do.
TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'You may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\n\\nFor each call write its name and its arguments within these tags:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

QUESTION = "Name three colours."
MESSAGES = [{"role": "user", "content": QUESTION}]
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {"type": "function",
           "function": {"name": "get_weather", "description": "The weather of a city.",
                        "parameters": WEATHER_PARAMETERS}}  # fmt: skip
SAILOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 18, "maximum": 90},
        "ships": {"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "ships"],
    "additionalProperties": False,
}


class Here:
    """The server, and what it answers to plain requests."""

    def __init__(self, server, model, work):
        self.url = f"http://127.0.0.1:{server.port}"
        self.model = pathlib.Path(model).stem
        self.file = model
        self.work = work  # a folder

    def ask(self, path, **body):
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    def chat(self, messages=MESSAGES, **fields):
        return self.ask("/v1/chat/completions", messages=messages, temperature=0, **fields)["choices"][0]["message"]


def require_valid(text, schema):
    import jsonschema

    value = json.loads(text)
    jsonschema.validate(value, schema)
    return value


# ---------------------------------------------------------------- openai


def openai_client(here):
    from openai import OpenAI

    return OpenAI(base_url=here.url + "/v1", api_key="none", max_retries=0)


def test_openai_chat(here):
    client = openai_client(here)
    reply = client.chat.completions.create(model=here.model, messages=MESSAGES, max_tokens=24, temperature=0)
    text = here.chat(max_tokens=24)["content"]
    assert reply.choices[0].message.content == text
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    seeded = [
        client.chat.completions.create(
            model=here.model, messages=MESSAGES, max_tokens=24, temperature=0.9, seed=5
        ).choices[0].message.content
        for _ in range(2)
    ]  # fmt: skip
    assert seeded[0] == seeded[1]


def test_openai_chat_stream(here):
    client = openai_client(here)
    chunks = list(
        client.chat.completions.create(
            model=here.model, messages=MESSAGES, max_tokens=24, temperature=0, stream=True,
            stream_options={"include_usage": True}
        )
    )  # fmt: skip
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == here.chat(max_tokens=24)["content"]
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    with client.chat.completions.stream(
        model=here.model, messages=MESSAGES, max_tokens=24, temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == text
    # Who stops reading leaves; the next request is answered.
    for _ in client.chat.completions.create(model=here.model, messages=MESSAGES, max_tokens=500, stream=True):
        break
    assert here.chat(max_tokens=24)["content"] == text


def test_openai_async(here):
    import asyncio

    from openai import AsyncOpenAI

    async def ask():
        async with AsyncOpenAI(base_url=here.url + "/v1", api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            return await asyncio.gather(
                *(create(model=here.model, messages=MESSAGES, max_tokens=16, temperature=0) for _ in range(6))
            )

    text = here.chat(max_tokens=16)["content"]
    assert [reply.choices[0].message.content for reply in asyncio.run(ask())] == [text] * 6


def test_openai_completions(here):
    client = openai_client(here)
    prompt = "The capital of France is"
    reply = client.completions.create(model=here.model, prompt=prompt, max_tokens=8, temperature=0, logprobs=3)
    told = reply.choices[0].logprobs
    assert "".join(told.tokens) == reply.choices[0].text
    assert len(told.token_logprobs) == 8 and all(value <= 0 for value in told.token_logprobs)
    assert all(len(top) == 3 for top in told.top_logprobs)
    assert [max(top, key=top.get) for top in told.top_logprobs] == told.tokens, "greedy"
    echo = client.completions.create(
        model=here.model, prompt=prompt + reply.choices[0].text, max_tokens=0, temperature=0, logprobs=1, echo=True
    ).choices[0]
    assert echo.text == prompt + reply.choices[0].text
    assert echo.logprobs.token_logprobs[0] is None
    difference = [abs(a - b) for a, b in zip(echo.logprobs.token_logprobs[-8:], told.token_logprobs)]
    assert echo.logprobs.tokens[-8:] == told.tokens and max(difference) < 1e-4, difference


def test_openai_responses(here):
    client = openai_client(here)
    text = here.chat(max_tokens=24)["content"]
    reply = client.responses.create(model=here.model, input=QUESTION, max_output_tokens=24, temperature=0)
    assert reply.output_text == text
    assert reply.usage.output_tokens > 0
    streamed, last = "", None
    for event in client.responses.create(
        model=here.model, input=QUESTION, max_output_tokens=24, temperature=0, stream=True
    ):
        if event.type == "response.output_text.delta":
            streamed += event.delta
        last = event
    assert streamed == text
    assert last.type in ("response.completed", "response.incomplete"), last.type
    assert last.response.output_text == text
    with client.responses.stream(model=here.model, input=QUESTION, max_output_tokens=24, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == text


def test_openai_responses_tools(here):
    client = openai_client(here)
    tool = {"type": "function", "name": "get_weather", "description": "The weather.", "strict": True,
            "parameters": WEATHER_PARAMETERS}  # fmt: skip
    reply = client.responses.create(model=here.model, input="Weather in Paris?", tools=[tool], tool_choice="required",
                                    max_output_tokens=100, temperature=0)  # fmt: skip
    calls = [item for item in reply.output if item.type == "function_call"]
    assert {call.name for call in calls} == {"get_weather"}
    for call in calls:
        require_valid(call.arguments, WEATHER_PARAMETERS)
    answer = client.responses.create(
        model=here.model, tools=[tool], max_output_tokens=24, temperature=0,
        input=[{"role": "user", "content": "Weather in Paris?"}, *reply.output,
               *({"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"} for call in calls)])  # fmt: skip
    assert answer.output


def test_openai_tools(here):
    client = openai_client(here)
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        reply = client.chat.completions.create(
            model=here.model, messages=question, tools=[WEATHER], tool_choice=choice, max_tokens=200, temperature=0
        ).choices[0]
        assert reply.finish_reason == "tool_calls"
        whole = reply.message.tool_calls  # llama.cpp's grammars let several come
        assert whole and len({call.id for call in whole}) == len(whole)
        for call in whole:
            assert call.function.name == "get_weather"
            require_valid(call.function.arguments, WEATHER_PARAMETERS)
    streamed = {}
    for chunk in client.chat.completions.create(
        model=here.model, messages=question, tools=[WEATHER], tool_choice="required", max_tokens=200, temperature=0,
        stream=True
    ):  # fmt: skip
        for part in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            name, arguments = streamed.get(part.index, ("", ""))
            streamed[part.index] = name + (part.function.name or ""), arguments + (part.function.arguments or "")
    assert [*streamed.values()] == [(call.function.name, call.function.arguments) for call in whole]
    # With auto the model may write text or a call.
    reply = client.chat.completions.create(
        model=here.model, messages=question, tools=[WEATHER], max_tokens=60, temperature=0
    ).choices[0]
    assert reply.message.content or reply.message.tool_calls


def test_openai_json_schema(here):
    from pydantic import BaseModel

    client = openai_client(here)
    question = [{"role": "user", "content": "Describe a sailor as JSON."}]
    named = {"type": "json_schema", "json_schema": {"name": "sailor", "strict": True, "schema": SAILOR}}
    reply = client.chat.completions.create(model=here.model, messages=question, response_format=named, max_tokens=120,
                                           temperature=0).choices[0]  # fmt: skip
    assert reply.finish_reason == "stop"
    require_valid(reply.message.content, SAILOR)
    reply = client.chat.completions.create(model=here.model, messages=question, max_tokens=200, temperature=0,
                                           response_format={"type": "json_object"}).choices[0]  # fmt: skip
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.message.content), dict)

    class Boat(BaseModel):
        sails: int
        wooden: bool

    parsed = client.chat.completions.parse(
        model=here.model, messages=question, response_format=Boat, max_tokens=100, temperature=0
    ).choices[0]
    assert isinstance(parsed.message.parsed, Boat), parsed
    parsed = client.responses.parse(
        model=here.model, input="Describe a boat.", text_format=Boat, max_output_tokens=100, temperature=0
    )
    assert isinstance(parsed.output_parsed, Boat), parsed


def test_openai_models_and_errors(here):
    import openai

    client = openai_client(here)
    assert [model.id for model in client.models.list()] == [here.model]
    for wrong, kind in (
        ({"temperature": "hot"}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, openai.BadRequestError),
    ):
        try:
            client.chat.completions.create(**({"model": here.model, "messages": MESSAGES} | wrong))
        except kind as error:
            assert error.body["message"] and error.code, error
        else:
            raise AssertionError(f"{wrong} was let pass")


def test_agent(here):
    """Calls tools until the model has nothing more to ask, the first time because it must."""
    client = openai_client(here)
    asked = []

    def get_weather(city, unit):
        asked.append(city)
        return {"city": city, "temperature": 18, "unit": unit}

    def add(a, b):
        return {"sum": a + b}

    numbers = {"type": "object", "required": ["a", "b"], "additionalProperties": False,
               "properties": {name: {"type": "integer", "minimum": 0, "maximum": 99} for name in "ab"}}  # fmt: skip
    functions = {"get_weather": (get_weather, WEATHER_PARAMETERS), "add": (add, numbers)}
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}}
             for name, (_, parameters) in functions.items()]  # fmt: skip
    messages = [{"role": "system", "content": "You answer with the help of functions."},
                {"role": "user", "content": "What is the weather in Oslo?"}]  # fmt: skip
    calls = 0
    for turn in range(4):
        reply = client.chat.completions.create(
            model=here.model, messages=messages, tools=tools, tool_choice="required" if turn == 0 else "auto",
            max_tokens=120, temperature=0
        ).choices[0]  # fmt: skip
        messages.append(reply.message.model_dump(exclude_none=True))
        if not reply.message.tool_calls:
            break
        for call in reply.message.tool_calls:
            function, parameters = functions[call.function.name]
            arguments = require_valid(call.function.arguments, parameters)
            calls += 1
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(function(**arguments))})
    assert calls >= 1
    assert turn > 0, "the tool's answer was read"


# ---------------------------------------------------------------- anthropic
# Its client sends no temperature; the server's default is greedy.


def anthropic_client(here):
    import anthropic

    return anthropic.Anthropic(base_url=here.url, api_key="none", max_retries=0)


def test_anthropic_messages(here):
    client = anthropic_client(here)
    text = here.chat(max_tokens=24)["content"]
    reply = client.messages.create(model=here.model, messages=MESSAGES, max_tokens=24)
    assert "".join(block.text for block in reply.content) == text
    assert reply.stop_reason in ("end_turn", "max_tokens") and reply.usage.output_tokens > 0
    counted = client.messages.count_tokens(model=here.model, messages=MESSAGES).input_tokens
    assert counted == reply.usage.input_tokens + (reply.usage.cache_read_input_tokens or 0)
    with client.messages.stream(model=here.model, messages=MESSAGES, max_tokens=24) as stream:
        assert "".join(stream.text_stream) == text
        assert stream.get_final_message().stop_reason == reply.stop_reason
    system = client.messages.create(model=here.model, system="Be brief.", messages=MESSAGES, max_tokens=16,
                                    stop_sequences=["zzz"])  # fmt: skip
    asked = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert system.content[0].text == here.chat(asked, max_tokens=16, stop=["zzz"])["content"]


def test_anthropic_tools(here):
    client = anthropic_client(here)
    tools = [{"name": "get_weather", "description": "The weather.", "input_schema": WEATHER_PARAMETERS}]
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"model": here.model, "tools": tools, "max_tokens": 100}
    reply = client.messages.create(messages=messages, tool_choice={"type": "any"}, **asked)
    assert reply.stop_reason == "tool_use", reply
    use = next(block for block in reply.content if block.type == "tool_use")
    require_valid(json.dumps(use.input), WEATHER_PARAMETERS)
    with client.messages.stream(messages=messages, tool_choice={"type": "any"}, **asked) as stream:
        last = stream.get_final_message()
    assert next(block for block in last.content if block.type == "tool_use").input == use.input
    messages += [{"role": "assistant", "content": reply.content},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "18 degrees"}]}]  # fmt: skip
    assert client.messages.create(messages=messages, **asked).content


def test_anthropic_errors(here):
    import anthropic

    try:
        anthropic_client(here).messages.create(model=here.model, messages=[], max_tokens=4)
    except anthropic.BadRequestError as error:
        assert error.body["type"] == "error" and error.body["error"]["message"], error.body
    else:
        raise AssertionError("no messages were let pass")


# ---------------------------------------------------------------- langchain


def langchain_model(here, **fields):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=here.url + "/v1", api_key="none", model=here.model, temperature=0, max_retries=0,
                      **fields)  # fmt: skip


def test_langchain_chat(here):
    text = here.chat(max_tokens=24)["content"]
    model = langchain_model(here, max_tokens=24)
    assert model.invoke(QUESTION).content == text
    assert "".join(chunk.content for chunk in model.stream(QUESTION)) == text
    assert [reply.content for reply in model.batch([QUESTION] * 3)] == [text] * 3
    assert langchain_model(here, max_tokens=24, use_responses_api=True).invoke(QUESTION).text == text


def test_langchain_tools(here):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def multiply(a: int, b: int) -> int:
        """Multiplies two numbers."""
        return a * b

    model = langchain_model(here, max_tokens=100)
    asked = [HumanMessage("What is 3 times 4?")]
    reply = model.bind_tools([multiply], tool_choice="any").invoke(asked)
    assert reply.tool_calls
    for call in reply.tool_calls:
        assert call["name"] == "multiply" and {type(call["args"][name]) for name in "ab"} == {int}
    results = [ToolMessage(str(multiply.invoke(call["args"])), tool_call_id=call["id"]) for call in reply.tool_calls]
    assert model.bind_tools([multiply]).invoke([*asked, reply, *results]).type == "ai"


def test_langchain_structured_output(here):
    from pydantic import BaseModel, Field

    class Joke(BaseModel):
        """A joke."""

        topic: str = Field(description="what it is about", max_length=20)
        stars: int = Field(ge=1, le=5)

    for method in ("json_schema", "function_calling"):
        model = langchain_model(here, max_tokens=100).with_structured_output(Joke, method=method)
        joke = model.invoke("A joke about cats, as JSON.")
        assert isinstance(joke, Joke), (method, joke)


# ---------------------------------------------------------------- llm


def test_llm(here):
    (here.work / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: {here.model}\n  api_base: {here.url}/v1\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(here.work), "OPENAI_API_KEY": "none"}
    command = [pathlib.Path(sys.executable).parent / "llm"]

    def llm(*arguments):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("-m", "here", "-o", "temperature", "0", "-o", "max_tokens")
    text = here.chat(max_tokens=24)["content"]
    assert "here" in llm("models")
    assert llm(*options, "24", QUESTION).rstrip("\n") == text.rstrip("\n")
    assert llm(*options, "24", "--no-stream", QUESTION).rstrip("\n") == text.rstrip("\n")
    assert llm(*options, "8", "-c", "And one more?").strip(), "the conversation goes on"
    value = json.loads(llm(*options, "100", "--schema", "sails int, wooden bool", "Describe a boat."))
    assert isinstance(value["sails"], int) and isinstance(value["wooden"], bool), value


# ---------------------------------------------------------------- lm-eval

TASK = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/tiny_choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
CHOICES = [
    ("The capital of France is", [" Paris", " a kind of cheese", " 17"], 0),
    ("Water freezes at zero degrees", [" Celsius.", " of freedom in the afternoon.", " Kelvin."], 0),
    ("One, two, three,", [" seven", " four", " elephants and mice"], 1),
    ("The opposite of hot is", [" hot", " potato", " cold"], 2),
    ("A dog says", [" \"Woof!\"", " \"Bonjour, Stra\u00dfe \U0001f600\"", " nothing, as it is a table"], 0),
]


def write_tokenizer(model, folder):
    """The model's own, for Hugging Face's library."""
    import gguf
    import tokenizers

    fields = gguf.GGUFReader(model).fields
    texts = lambda name: [bytes(fields[name].parts[i]).decode() for i in fields[name].data]
    vocabulary = {text: number for number, text in enumerate(texts("tokenizer.ggml.tokens"))}
    merges = [tuple(pair.split(" ")) for pair in texts("tokenizer.ggml.merges")]
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Digits(individual_digits=True),
         tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])  # fmt: skip
    made.decoder = tokenizers.decoders.ByteLevel()
    control = [text for text, number in vocabulary.items() if kinds[number] == 3]
    made.add_special_tokens(control)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    )
    return made


def lm_eval_scores(here, url, folder):
    """Of each question and choice: log probability, and whether it is the greedy text."""
    output = folder / f"results-{url.rpartition(':')[2]}"
    arguments = {"model": here.model, "base_url": f"{url}/v1/completions", "tokenizer": folder,
                 "tokenizer_backend": "huggingface", "num_concurrent": 2, "max_retries": 1}  # fmt: skip
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
               ",".join(f"{name}={value}" for name, value in arguments.items()), "--tasks", "tiny_choice",
               "--include_path", folder, "--log_samples", "--output_path", output]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = output.rglob("samples_*.jsonl")
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    assert len(lines) == len(CHOICES)
    return [[(float(score), str(greedy) == "True") for score, greedy in line["filtered_resps"]] for line in lines]


def lm_eval_case(here, firp):
    """The harness's numbers are sums of the server's own, with drafts and without."""
    folder = here.work
    (folder / "tiny_choice.yaml").write_text(TASK.format(folder=folder))
    with open(folder / "tiny_choice.jsonl", "w") as file:
        for question, choices, answer in CHOICES:
            file.write(json.dumps({"question": question, "choices": choices, "answer": answer}) + "\n")
    made = write_tokenizer(here.file, folder)
    for question, choices, _ in CHOICES:
        for text in (question, *choices, question + choices[0]):
            theirs = here.ask("/tokenize", content=text)["tokens"]
            assert made.encode(text).ids == theirs, (text, made.encode(text).ids, theirs)

    scores = lm_eval_scores(here, here.url, folder)
    for (question, choices, _), told in zip(CHOICES, scores):
        for choice, (score, is_greedy) in zip(choices, told):
            # Written one token after the other: what each had as a probability when it was not yet there.
            tokens = here.ask("/tokenize", content=question)["tokens"]
            total, greedy = 0.0, True
            for token in here.ask("/tokenize", content=choice)["tokens"]:
                reply = here.ask("/completion", prompt=tokens, n_predict=1, temperature=0, n_probs=1,
                                 logit_bias=[[token, 1000]])["completion_probabilities"][0]  # fmt: skip
                assert reply["id"] == token
                total += reply["logprob"]
                greedy = greedy and reply["top_logprobs"][0]["id"] == token
                tokens.append(token)
            assert abs(total - score) < 1e-3, (question, choice, total, score)
            assert greedy == is_greedy, (question, choice)
    plain = Served(firp, "serve", here.file, "-c", 2048, "--draft", "none")
    try:
        assert lm_eval_scores(here, f"http://127.0.0.1:{plain.port}", folder) == scores, "as without drafts"
    finally:
        plain.end()


# ---------------------------------------------------------------- running


def python_with(name, packages):
    """The Python of an environment that has the packages; None where they cannot be had."""
    folder = CACHE / "clients" / name
    python, listed = folder / "bin/python", folder / "packages"
    if listed.exists() and listed.read_text().split() == packages:
        return python
    print(f"installing {', '.join(packages)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", *packages]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        # What pip says where it reaches no index at all.
        if re.search(r"from versions: none|Connection|Temporary failure|ProxyError", done.stderr):
            return None
        raise SystemExit(f"pip cannot install {packages}:\n{done.stderr[-2000:]}")
    listed.write_text("\n".join(packages))
    return python


def run(args):
    """The cases, in the environment that has their packages."""
    if args.inside == "lm-eval":
        cases = [("lm_eval", lambda here: lm_eval_case(here, args.firp))]
    else:
        cases = [(name.removeprefix("test_"), case) for name, case in globals().items() if name.startswith("test_")]
    cases = [(name, case) for name, case in cases if args.only in name]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="firp-clients-") as work:
        work = pathlib.Path(work)
        (work / "tools.jinja").write_text(TEMPLATE)
        server = Served(args.firp, "serve", args.model, "-c", 4096, "--chat-template-file", work / "tools.jinja")
        here = Here(server, args.model, work)
        try:
            for name, case in cases:
                begin = time.monotonic()
                try:
                    case(here)
                    print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
                except Exception:
                    failed += 1
                    print(f"FAILED: {name}\n{traceback.format_exc()}", flush=True)
        finally:
            status, _ = server.end()
        if status != 0:
            failed += 1
            print(f"FAILED: the server ended with {status}\n{server.tail()}")
    print(f"{len(cases)} cases, {failed} failed")
    return failed > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--with", dest="more", choices=("lm-eval",), help="this one, too")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        raise SystemExit(run(args))
    if not os.path.exists(args.model):
        print(f"skipped: no model at {args.model} (scripts/setup.sh fetches it)")
        raise SystemExit(77)
    environments = [("venv", PACKAGES)] + [("lm-eval", LM_EVAL_PACKAGES)] * (args.more == "lm-eval")
    failed = False
    for name, packages in environments:
        python = python_with(name, packages)
        if python is None:
            print("skipped: PyPI is out of reach")
            raise SystemExit(77)
        command = [python, os.path.abspath(__file__), args.firp, args.model, "--inside", name, "--only", args.only]
        failed = subprocess.run(command).returncode != 0 or failed
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
