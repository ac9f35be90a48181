"""The app: ask a model in the browser, and see the training examples behind its answer. Needs `lorif-hf[app]`.

```python
from lorif_hf.app import launch

launch("me/my-index", "me/my-model")
```
"""

from .launching import build_app, launch
from .space import push_space


__all__ = ["build_app", "launch", "push_space"]
