/* control/args.c - a command's arguments against its row of the table. */
#include "base/error.h"
#include "control/core.h"

#include <errno.h>
#include <string.h>

enum { TEXT_MAX = 4096 };

static const struct control_arg *arg_find(const struct control_command *c, const char *name)
{
	for (unsigned i = 0; i < CONTROL_ARGS_MAX && c->args[i].name; i++)
		if (!strcmp(c->args[i].name, name))
			return &c->args[i];
	return NULL;
}

static int check_text(const struct control_arg *a, const json_t *v, struct error *err)
{
	if (!json_is_string(v))
		return err_set(err, EINVAL, "Parameter '%s' expects a string", a->name);
	if (!json_string_length(v) || json_string_length(v) >= TEXT_MAX)
		return err_set(err, EINVAL, "Parameter '%s' is empty or too long", a->name);
	return 0;
}

static int check_choice(const struct control_arg *a, const json_t *v, struct error *err)
{
	int r = check_text(a, v, err);

	if (r < 0)
		return r;
	for (const char *const *c = a->choices; *c; c++)
		if (!strcmp(*c, json_string_value(v)))
			return 0;
	return err_set(err, EINVAL, "Parameter '%s' does not accept value '%.64s'", a->name,
		       json_string_value(v));
}

static int check_list(const struct control_arg *a, const json_t *v, struct error *err)
{
	if (!json_is_array(v))
		return err_set(err, EINVAL, "Parameter '%s' expects an array", a->name);
	for (size_t i = 0; i < json_array_size(v); i++)
		if (!json_is_string(json_array_get(v, i)))
			return err_set(err, EINVAL, "Parameter '%s' expects an array of strings",
				       a->name);
	return 0;
}

static int check_value(const struct control_arg *a, const json_t *v, struct error *err)
{
	switch (a->type) {
	case CONTROL_NO_ARG:
		break;
	case CONTROL_STRING:
	case CONTROL_PATH:
		return check_text(a, v, err);
	case CONTROL_CHOICE:
		return check_choice(a, v, err);
	case CONTROL_LIST:
		return check_list(a, v, err);
	}
	return 0;
}

int control_args_check(const struct control_command *c, const json_t *args, struct error *err)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)(uintptr_t)args, key, value)
	{
		const struct control_arg *a = arg_find(c, key);
		int r = a ? check_value(a, value, err)
			  : err_set(err, EINVAL, "Parameter '%.64s' is unexpected", key);

		if (r < 0)
			return r;
	}
	for (unsigned i = 0; i < CONTROL_ARGS_MAX && c->args[i].name; i++)
		if (!c->args[i].optional && !json_object_get(args, c->args[i].name))
			return err_set(err, EINVAL, "Parameter '%s' is missing", c->args[i].name);
	return 0;
}

const char *control_arg_text(const struct control_call *call, const char *name)
{
	return json_string_value(json_object_get(call->args, name));
}
