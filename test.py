"""Old name of another program; says which one."""

from utils.core.cli import run_script
from utils.core.old_names import refuse_old_name

if __name__ == "__main__":
    run_script(lambda: refuse_old_name(__file__))
