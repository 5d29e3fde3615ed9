"""What tools/compare works out, by itself. Run by tests/compare_torch.rs; those that need PyTorch say that they skip."""

import importlib.util
import struct
import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import compare_torch
from compare import llama_cpp, table
from compare.lines import bench_line, spread
from compare.measure import LACUNA, TORCH, Row, unmask_times


def row(part, torch, own, torch_peak=100, own_peak=50, **known):
    turns = {
        TORCH: [{"seconds": s, "peak_memory_bytes": torch_peak} for s in torch],
        LACUNA: [{"seconds": s, "peak_memory_bytes": own_peak} for s in own],
    }
    made = Row(part, part, {who: of for who, of in turns.items() if of})
    bench = {"forward": "step", "sample": "kernel"}.get(part, part)
    made.lines = {who: bench_line(bench, who, part, made.seconds(who), **known) for who in made.turns}
    return made


class Lines(unittest.TestCase):
    def test_statistics_and_identities(self):
        line = bench_line("generate", "lacuna", "x", [4.0, 1.0, 2.0, 3.0], tokens=10, tokens_raw=20, nfe=5, batch=2, flops=100)
        self.assertEqual((line["median_s"], line["min_s"], line["max_s"], line["runs"]), (2.5, 1.0, 4.0, 4))
        self.assertEqual(line["seconds"], [4.0, 1.0, 2.0, 3.0])
        # Quartiles 1.75 and 3.25, as between the numbers.
        self.assertAlmostEqual(line["spread"], 1.5 / 2.5)
        for rate, count in (("tokens_per_s", 10), ("tokens_raw_per_s", 20), ("flops_per_s", 100)):
            self.assertAlmostEqual(line[rate] * line["median_s"], count)
        self.assertEqual((line["ms_per_step"], line["tokens_per_forward"]), (500.0, 1.0))
        self.assertEqual((line["schema"], spread([7.0])), (1, 0.0))
        kernel = bench_line("kernel", "lacuna", "x", [2e-6, 1e-6])
        self.assertAlmostEqual(kernel["median_us"], 1.5)
        self.assertAlmostEqual(kernel["min_us"], 1.0)

    def test_times_that_are_none_are_refused(self):
        for seconds in ([0.0], [1.0, float("nan")], [-1.0], [float("inf")]):
            with self.assertRaisesRegex(SystemExit, "expected numbers above 0"):
                bench_line("train", "lacuna", "x", seconds)


class Kernels(unittest.TestCase):
    def test_lines_that_draw_by_top_p_are_found(self):
        def line(shape, us, **other):
            return {"bench": "kernel", "stem": "unmask", "kernel": "unmask_f32", "shape": shape, "median_us": us, "device": "cpu", **other}

        times = unmask_times([
            line("top-p 0.9, rows 128, vocab 50257", 7000),
            line("top-p 0.9, rows 128, vocab 50257", 1, dtype="bf16"),
            line("top-p 0.9, rows 128, vocab 50257, near-flat logits", 9000),
            line("greedy, rows 128, vocab 50257", 2000),
            line("top-p 0.9, rows 3, vocab 301", 5, stem="norm", kernel="norm"),
            {"bench": "ceiling", "shape": "top-p 0.9, rows 3, vocab 301"},
            {"bench": "kernel", "stem": "unmask", "kernel": "unmask"},
        ])  # fmt: skip
        self.assertEqual(
            times, {(0.9, 128, 50257, "peaked"): (0.007, "cpu"), (0.9, 128, 50257, "near-flat"): (0.009, "cpu")}
        )


class Goals(unittest.TestCase):
    def judged(self, *rows):
        return [(met, words) for met, words in table.goals(rows)]

    def test_met_missed_and_left_out(self):
        (speed, words), (memory, _) = self.judged(row("forward", [2.5], [2.0]))
        self.assertEqual((speed, memory), (True, True))
        self.assertIn("1.25x PyTorch's, goal at least 1.25x", words)
        (speed, words), (memory, told) = self.judged(row("train", [2.9], [2.0], own_peak=71))
        self.assertEqual((speed, memory), (False, False))
        self.assertTrue(words.startswith("missed: train: speed") and "0.71x PyTorch's, goal at most 0.7x" in told)
        (only, words), *_ = self.judged(row("sample", [2.9], []))
        self.assertIsNone(only)
        self.assertIn("left out", words)

    def test_goals_of_a_generation_are_by_its_steps(self):
        self.assertEqual([m for m, _ in self.judged(row("generate", [7.0], [1.0], steps=32, length=128))], [True, True])
        self.assertEqual([m for m, _ in self.judged(row("generate", [7.0], [1.0], steps=128, length=128))], [False, True])
        # Another length has no goal of speed.
        self.assertEqual(len(self.judged(row("generate", [7.0], [1.0], steps=32, length=64))), 1)
        self.assertEqual([m for m, _ in self.judged(row("sample", [30.0], [1.0]))], [True])


class Documents(unittest.TestCase):
    def test_the_table_goes_between_the_markers(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.md")
            path.write_text(f"head\n{table.BEGIN}\nold\n{table.END}\ntail\n")
            for text in ("first", "second"):
                table.write_docs(path, text)
            self.assertEqual(path.read_text(), f"head\n{table.BEGIN}\nsecond\n{table.END}\ntail\n")
            self.assertEqual(list(Path(folder).iterdir()), [path])

    def test_a_document_without_one_pair_of_markers_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.md")
            begin, end = table.BEGIN, table.END
            for text in ("", begin, end, f"{end}{begin}", f"{begin}{begin}{end}", f"{begin}{end}{end}"):
                path.write_text(text)
                with self.assertRaisesRegex(SystemExit, "expected one"):
                    table.markers(path)
            with self.assertRaisesRegex(SystemExit, "No such file"):
                table.markers(Path(folder, "none.md"))

    def test_the_documents_of_the_repository_have_their_place(self):
        before, after = table.markers(compare_torch.DOCS)
        self.assertTrue(before.strip() and after.strip())

    def test_the_command_in_the_table_asks_for_the_same_again(self):
        for words in (
            [], ["--threads", "2"], ["--quick", "--only", "sample,forward"], ["--made-up", "--steps", "8,16", "--top-p", "0.5"],
            ["--attention", "sdpa,eager", "--masked", "0.25", "--lacuna-only", "--json", "/x/y", "--lacuna", "/x/lacuna"],
            ["--quick", "--repeats", "5"],
        ):  # fmt: skip
            args = compare_torch.arguments(words)
            args.asked_model = args.model
            again = compare_torch.command(args).split()
            self.assertEqual(again[:2], ["python3", "tools/compare_torch.py"])
            self.assertNotIn("/x", " ".join(again))
            made = compare_torch.arguments(again[2:])
            made.json, made.lacuna, made.asked_model = args.json, args.lacuna, args.asked_model
            self.assertEqual(vars(made), vars(args))


def gguf(pairs, version=3):
    """A GGUF header: keys with (type, bytes)."""

    def text(words):
        return struct.pack("<Q", len(words)) + words.encode()

    out = b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs))
    for key, (kind, data) in pairs.items():
        out += text(key) + struct.pack("<I", kind) + (text(data) if kind == 8 else data)
    return out


FACTS = {
    "general.architecture": (8, "llada"),
    "general.file_type": (4, struct.pack("<I", 7)),
    "general.flags": (9, struct.pack("<IQ", 5, 3) + struct.pack("<3i", 1, 2, 3)),
    "llada.block_count": (4, struct.pack("<I", 2)),
    "llada.embedding_length": (10, struct.pack("<Q", 128)),
    "llada.feed_forward_length": (4, struct.pack("<I", 352)),
    "llada.attention.head_count": (4, struct.pack("<I", 4)),
    "llada.attention.head_count_kv": (4, struct.pack("<I", 2)),
    "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 2) + 2 * (struct.pack("<Q", 1) + b"a")),
}


class Llama(unittest.TestCase):
    def test_what_the_program_prints_is_read(self):
        text = "x\n\ntotal time: 1234.50ms, time per step: 38.58ms, sampling time per step: 2.25ms\n"
        for got, expected in zip(llama_cpp.timing(text), (1.2345, 0.03858, 0.00225), strict=True):
            self.assertAlmostEqual(got, expected)
        # The last one counts; the drawing is not always told.
        self.assertEqual(llama_cpp.timing(text + "total time: 10.00ms, time per step: 5.00ms (2 steps"), (0.01, 0.005, None))
        with self.assertRaisesRegex(SystemExit, "printed no 'total time"):
            llama_cpp.timing("error: unsupported model for diffusion")

    def test_the_shape_of_a_file_is_read(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.gguf")
            path.write_bytes(gguf(FACTS))
            arch, numbers, kind = llama_cpp.shape(llama_cpp.gguf_facts(path))
            self.assertEqual((arch, numbers, kind), ("llada", (2, 128, 352, 4, 2, 2), "q8_0"))
            config = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4,
                      "num_key_value_heads": 2, "vocab_size": 2}  # fmt: skip
            self.assertEqual(llama_cpp.shape_of_config(config), numbers)

    def test_files_that_are_not_gguf_are_refused(self):
        whole = gguf(FACTS)
        long_text = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62)
        long_array = gguf({"x": (9, struct.pack("<IQ", 8, 1 << 62))})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.gguf")
            cases = [b"", b"GGML" + whole[4:], whole[:-1], whole[:40], gguf({"x": (9, struct.pack("<IQ", 5, 1))}), gguf(FACTS, 9), gguf({"x": (77, b"")}), long_text, long_array]
            for data in cases:
                path.write_bytes(data)
                with self.assertRaisesRegex(SystemExit, "not a GGUF file that can be read"):
                    llama_cpp.gguf_facts(path)


@unittest.skipUnless(importlib.util.find_spec("torch"), "this Python has no PyTorch")
class Drawing(unittest.TestCase):
    def test_the_reference_draws_from_the_nucleus_alone_and_as_often_as_it_should(self):
        import torch
        from compare.torch_side import draw

        torch.manual_seed(1)
        # Shuffled, so that a scatter that is not undone would show; the nucleus of 0.8 is 0.5, 0.25 and the one that crosses.
        share = torch.tensor([0.05, 0.25, 0.04, 0.5, 0.16])
        rows = 4000
        drawn = draw(torch, share.log().repeat(rows, 1), 0.8)
        counts = torch.bincount(drawn, minlength=5).double()
        self.assertEqual((counts[0].item(), counts[2].item()), (0.0, 0.0))
        kept = torch.tensor([0.25, 0.5, 0.16], dtype=torch.double)
        expected = rows * kept / kept.sum()
        self.assertLess((((counts[[1, 3, 4]] - expected) ** 2) / expected).sum().item(), 20.0)  # chi-square, 2 degrees

    def test_the_logits_are_of_the_kinds_that_are_told(self):
        import torch
        from compare.torch_side import made_up_logits

        def nucleus(kind):
            probs = torch.softmax(made_up_logits(torch, kind, 2, 5000), -1).sort(descending=True).values
            return (probs.cumsum(-1) < 0.9).sum(-1).float().mean().item() / 5000

        self.assertLess(nucleus("peaked"), 0.1)
        self.assertGreater(nucleus("near-flat"), 0.8)


if __name__ == "__main__":
    unittest.main()
