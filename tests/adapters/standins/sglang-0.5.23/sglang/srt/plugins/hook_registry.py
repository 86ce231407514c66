import enum
import pkgutil


class HookType(enum.Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    hooks = []  # noqa: RUF012

    @classmethod
    def register(cls, target, hook, hook_type=HookType.AFTER, *, source=None):
        cls.hooks.append((target, hook, hook_type))

    @classmethod
    def apply_hooks(cls):
        for target, hook, hook_type in cls.hooks:
            if hook_type is not HookType.REPLACE:
                raise NotImplementedError(hook_type)
            module_name, _, name = target.rpartition(".")
            setattr(pkgutil.resolve_name(module_name), name, hook)
