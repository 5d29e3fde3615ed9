"""Part 4 of tools/gpu_check.sh: what the card can do, by PyTorch: bytes a second of a copy, and FLOP a second of a large
matrix product, which reports set kernels against.
"""

from common import Clock, Lines, Machine, arguments, brief, say, summary


def main():
    args = arguments(__doc__)
    lines, clock, machine = Lines(args.output, "ceilings"), Clock(args.seconds), Machine(args.tiny)
    torch = machine.torch
    sides = [64] if args.tiny else [8192, 4096]
    copied = 1 << (20 if args.tiny else 31)

    def copy():
        source = torch.empty(copied, dtype=torch.uint8, device=machine.device).random_()
        target = torch.empty_like(source)
        times = summary(machine.microseconds(lambda: target.copy_(source)))
        rate = 2 * copied / times["median_us"] / 1e3
        return {"what": "copy", "shape": f"{copied >> 20} MiB, read and written", **times, "gb_per_s": rate}

    def product(side):
        # Random numbers: a card is faster on zeros.
        a, b = (torch.randn(side, side, device=machine.device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(a)
        times = summary(machine.microseconds(lambda: torch.matmul(a, b, out=out)))
        rate = 2 * side**3 / times["median_us"] / 1e6
        return {"what": "product", "shape": f"bf16, {side} cubed", **times, "tflop_per_s": rate}

    for name, work in [("copy", copy)] + [(f"product {n}", lambda n=n: product(n)) for n in sides]:
        if clock.left() < 0:
            lines.write(what=name, error="no time left")
            continue
        try:
            found = work()
        except (RuntimeError, ValueError) as error:
            found = {"what": name, "error": brief(error)}
        say(f"ceilings: {found}")
        lines.write(who="PyTorch", torch=torch.__version__, device=machine.name, **found)
        machine.forget()


if __name__ == "__main__":
    main()
