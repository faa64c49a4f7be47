"""`python -m transformers_griffin.cli`"""

import sys

from . import main


sys.exit(main())
