"""PEFT's front door for any spec: `peft.get_peft_model(model, TnConfig(spec=...))`. Needs the extra `peft`.

Importing it makes the method known to PEFT, as TNADAPT: import it before `PeftModel.from_pretrained`, too.
"""

from tnadapt_torch.peft._config import TnConfig
from tnadapt_torch.peft._layer import TnLinear
from tnadapt_torch.peft._tuner import TnModel

__all__ = ["TnConfig", "TnLinear", "TnModel"]
