#!/usr/bin/env python3
"""How fast are JSON answers with drafts, held against plain decoding under the same grammar?

usage: json_speed.py FIRP MODEL [--rounds N] [-t N] [--temperature T]

Two servers, one with drafts and one with `--draft none`, are asked by turns: each of some twenty questions, with a JSON
schema of its own, by one and then by the other, and in the next round the other way round. Times are those of decoding,
without the prompt; a median of the rounds' ratios is printed. Ends with 1 where a text differs, or is no JSON. Nothing
else should run on the machine.
"""
import argparse
import json
import os
import statistics

from served import Served, exchange, request_bytes

STRING = {"type": "string", "maxLength": 40}
LINE = {"type": "string", "maxLength": 120}
COUNT = {"type": "integer", "minimum": 0, "maximum": 100000}
FLAG = {"type": "boolean"}


def one_of(*values):
    return {"enum": list(values)}


def list_of(items, most=3):
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def thing(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


ADDRESS = thing(street=STRING, house_number=COUNT, postal_code=STRING, city=STRING, country=STRING)
QUESTIONS = [
    ("Make up a person.", thing(first_name=STRING, last_name=STRING, date_of_birth={"type": "string", "format": "date"},
                                email_address=STRING, is_registered=FLAG)),
    ("Make up an order of a bookshop.",
     thing(order_number=COUNT, customer_name=STRING, delivery_address=ADDRESS,
           items=list_of(thing(title=STRING, author=STRING, quantity=COUNT, unit_price=COUNT)),
           status=one_of("received", "in preparation", "on its way", "delivered"))),
    ("Is this review good or bad? 'The boat was dry, the crew friendly, and we came home late and happy.'",
     thing(sentiment=one_of("positive", "negative", "neutral"), confidence_percent=COUNT, reason=LINE)),
    ("Find who, where and when: 'Ada Lovelace met Charles Babbage in London in June 1833.'",
     thing(people=list_of(thing(name=STRING)), places=list_of(STRING), dates=list_of(STRING))),
    ("Plan a day in Lisbon.", thing(city=STRING, activities=list_of(thing(time_of_day=one_of(
        "morning", "noon", "afternoon", "evening"), description=LINE, needs_booking=FLAG)))),
    ("Call a function that sets an alarm for seven in the morning.",
     thing(function_name=one_of("set_alarm", "send_message", "play_music"),
           arguments=thing(hour=COUNT, minute=COUNT, label=STRING, repeats_daily=FLAG))),
    ("A recipe for pancakes.", thing(name=STRING, ingredients=list_of(thing(name=STRING, amount=COUNT, unit=one_of(
        "g", "ml", "pieces")), 4), steps=list_of(LINE, 4))),
    ("Describe the planet Mars.", thing(name=STRING, distance_from_sun_in_million_km=COUNT, number_of_moons=COUNT,
                                        has_rings=FLAG, description=LINE)),
    ("Configure a small web server.", thing(listen_address=STRING, listen_port=COUNT, maximum_connections=COUNT,
                                            enable_compression=FLAG, log_level=one_of("debug", "info", "warning", "error"))),
    ("Write three flash cards on photosynthesis.", thing(cards=list_of(thing(question=LINE, answer=LINE)))),
    ("Describe the weather of tomorrow in Oslo.", thing(location=STRING, temperature_celsius={"type": "integer", "minimum": -40,
     "maximum": 50}, conditions=one_of("sunny", "cloudy", "rain", "snow"), wind_speed_km_per_hour=COUNT)),
    ("A bug report: the program ends when the file is empty.",
     thing(title=LINE, severity=one_of("low", "medium", "high", "critical"), steps_to_reproduce=list_of(LINE),
           expected_behaviour=LINE, actual_behaviour=LINE)),
    ("A movie about the sea.", thing(title=STRING, year_of_release={"type": "integer", "minimum": 1900, "maximum": 2030},
                                     directors=list_of(STRING, 2), genres=list_of(one_of("drama", "comedy", "adventure")))),
    ("Translate 'good morning' into three languages.", thing(original_text=STRING, translations=list_of(
        thing(language_code=one_of("de", "fr", "es", "it", "pt"), translated_text=STRING)))),
    ("An SQL table for customers.", thing(table_name=STRING, columns=list_of(thing(column_name=STRING, data_type=one_of(
        "integer", "text", "timestamp", "boolean"), is_nullable=FLAG, is_primary_key=FLAG), 4))),
    ("An invoice of a plumber.", thing(invoice_number=STRING, issued_to=thing(name=STRING, address=ADDRESS),
                                       positions=list_of(thing(description=LINE, hours=COUNT, rate=COUNT)), total=COUNT)),
    ("A character for a game.", thing(name=STRING, character_class=one_of("warrior", "wizard", "thief", "healer"),
                                      attributes=thing(strength=COUNT, intelligence=COUNT, dexterity=COUNT, luck=COUNT),
                                      inventory=list_of(STRING))),
    ("Sum up: 'The council met on Monday. It decided to build a bridge, which costs two million.'",
     thing(summary=LINE, topics=list_of(STRING), decisions=list_of(LINE, 2))),
    ("A contact card of a dentist.", thing(display_name=STRING, telephone_number=STRING, opening_hours=list_of(
        thing(day=one_of("Monday", "Tuesday", "Wednesday", "Thursday", "Friday"), opens_at=STRING, closes_at=STRING)))),
    ("A support ticket on a lost password.", thing(ticket_id=COUNT, category=one_of("account", "billing", "technical"),
                                                   priority=one_of("low", "normal", "urgent"), summary=LINE,
                                                   suggested_reply=LINE)),
]  # fmt: skip


def ask(server, question, schema, args):
    """The text, and its timings."""
    body = {
        "messages": [{"role": "user", "content": question + " Answer in JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "max_tokens": args.tokens,
        "temperature": args.temperature,
        "seed": 1,
    }
    responses, _ = exchange(server.port, [request_bytes("/v1/chat/completions", body)], 1, 600)
    if not responses or responses[0].status != 200:
        raise SystemExit(f"no answer to {question}: {responses}")
    reply = responses[0].json()
    return reply["choices"][0], reply["timings"]


def is_json(choice):
    if choice["finish_reason"] != "stop":
        return True  # cut off
    try:
        json.loads(choice["message"]["content"])
        return True
    except ValueError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("firp")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--each", action="store_true", help="print a line for each question")
    args = parser.parse_args()
    if not os.path.exists(args.model):
        print(f"skipped: no model at {args.model} (scripts/setup.sh fetches it)")
        raise SystemExit(77)
    command = [args.firp, "serve", "-m", args.model, "-t", args.threads, "-c", 2048]
    servers = {"drafts": Served(*command), "plain": Served(*command, "--draft", "none")}
    for server in servers.values():
        ask(server, *QUESTIONS[0], args)  # the first one also makes what is made once
    ratios, wrong = [], 0
    totals = {name: {"predicted_n": 0, "predicted_ms": 0.0, "forward_passes": 0} for name in servers}
    for round_number in range(args.rounds):
        seconds = dict.fromkeys(servers, 0.0)
        for number, (question, schema) in enumerate(QUESTIONS):
            order = list(servers) if (round_number + number) % 2 == 0 else list(servers)[::-1]
            found = {name: ask(servers[name], question, schema, args) for name in order}
            for name, (_, timings) in found.items():
                seconds[name] += timings["predicted_ms"] / 1e3
                for key in totals[name]:
                    totals[name][key] += timings[key]
            (drafted, a), (plain, b) = found["drafts"], found["plain"]
            same = drafted["message"]["content"] == plain["message"]["content"]
            if not same or not is_json(plain):
                wrong += 1
                print(f"WRONG: {question}\n  drafts {drafted['message']['content']!r}\n  plain  {plain['message']['content']!r}")
            if args.each and round_number == 0:
                print(f"{b['predicted_ms'] / a['predicted_ms']:5.2f} times  {a['tokens_per_forward_pass']:5.2f} a pass  "
                      f"{a['predicted_n']:4} tokens  {question[:60]}", flush=True)  # fmt: skip
        ratios.append(seconds["plain"] / seconds["drafts"])
    for server in servers.values():
        server.end()
    for name, total in totals.items():
        print(f"{name:7} {1e3 * total['predicted_n'] / total['predicted_ms']:7.1f} tokens/s, "
              f"{total['predicted_n'] / total['forward_passes']:.2f} tokens per pass")  # fmt: skip
    print(f"{len(QUESTIONS)} questions, {args.rounds} rounds, {args.threads} threads: with drafts "
          f"{statistics.median(ratios):.2f} times plain decoding's tokens/s ({min(ratios):.2f} to {max(ratios):.2f}); "
          + (f"{wrong} texts are wrong" if wrong else "all texts are the same"))  # fmt: skip
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
