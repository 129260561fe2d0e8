"""Use any spec as a PEFT method: `peft.get_peft_model(model, TnConfig(spec=...))`. Needs the extra `peft`.

Importing this package registers the method with PEFT under the name TNADAPT. Import it before calling
`PeftModel.from_pretrained`, too.
"""

from tnadapt.binding import extra

with extra("peft", "tnadapt_torch.peft"):
    from tnadapt_torch.peft import _register as _register
    from tnadapt_torch.peft._config import TnConfig
    from tnadapt_torch.peft._layer import TnLinear, TnParameters
    from tnadapt_torch.peft._tuner import TnModel

__all__ = ["TnConfig", "TnLinear", "TnModel", "TnParameters"]
