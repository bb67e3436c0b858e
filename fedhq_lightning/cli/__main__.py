"""`python -m fedhq_lightning.cli` is `fedhq`."""

import sys

from fedhq_lightning.cli.main import main

sys.exit(main())
