# Started as `python -c THIS REPORT`: standard input brings a line with a token, then a program. The program is run
# with empty globals, and when it has come to its end without an exception the token goes to the descriptor REPORT.
import os
import sys


def main():
    write, leave, show, report = os.write, os._exit, sys.__excepthook__, int(sys.argv.pop())
    os.set_inheritable(report, False)
    token, program = sys.stdin.buffer.read().split(b"\n", 1)
    # Given back when memory runs out, so that there is some to go on with.
    reserve = bytearray(4 << 20)
    try:
        exec(compile(program.decode(), "<program>", "exec", dont_inherit=True), {})
    except MemoryError:
        del reserve
        write(2, b"\nMemoryError\n")
        leave(1)
    except BaseException as error:
        show(type(error), error, error.__traceback__)
        leave(1)
    # No interpreter is taken down: that would wait for threads, and visit all objects.
    write(report, token)
    leave(0)


main()
