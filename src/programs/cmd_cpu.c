/* cmd_cpu.c - hv cpu list: what --cpu can be. */
#include "engine/cpu_model.h"
#include "programs/hv.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static void print_help(void)
{
	printf("Usage: hv cpu list [--json]\n\n"
	       "Lists the CPU models that `hv run --cpu MODEL` knows and, for each feature, "
	       "whether\n"
	       "this host can run it and which models have it.  A model can be adjusted:\n"
	       "--cpu base,+avx2,-aes\n");
}

static void print_text(const struct cpu_model_info *list, unsigned n, const struct cpu_model *m)
{
	printf("Models:\n");
	for (unsigned i = 0; i < n; i++)
		printf("  %-8s %s\n", list[i].name, list[i].summary);
	printf("\n%-18s %-5s", "Feature", "host");
	for (unsigned i = 0; i < n; i++)
		printf(" %-6s", list[i].name);
	printf("\n");
	for (unsigned f = 0; f < CPU_NR_FEATURES; f++) {
		printf("%-18s %-5s", cpu_feature_name(f), cpu_feature_on_host(f) ? "yes" : "-");
		for (unsigned i = 0; i < n; i++)
			printf(" %-6s", cpu_has(&m[i], f) ? "yes" : "-");
		printf("\n");
	}
}

static void print_json(const struct cpu_model_info *list, unsigned n, const struct cpu_model *m)
{
	printf("{\"models\":[");
	for (unsigned i = 0; i < n; i++) {
		const char *comma = "";

		printf("%s{\"name\":\"%s\",\"summary\":\"%s\",\"features\":[", i ? "," : "",
		       list[i].name, list[i].summary);
		for (unsigned f = 0; f < CPU_NR_FEATURES; f++)
			if (cpu_has(&m[i], f)) {
				printf("%s\"%s\"", comma, cpu_feature_name(f));
				comma = ",";
			}
		printf("]}");
	}
	printf("],\"host\":[");
	for (unsigned f = 0, first = 1; f < CPU_NR_FEATURES; f++)
		if (cpu_feature_on_host(f)) {
			printf("%s\"%s\"", first ? "" : ",", cpu_feature_name(f));
			first = 0;
		}
	printf("]}\n");
}

static int cpu_list(bool json)
{
	const struct cpu_model_info *list;
	struct cpu_model models[8];
	unsigned n = MIN(cpu_model_list(&list), ARRAY_SIZE(models));
	struct error err;

	for (unsigned i = 0; i < n; i++)
		if (cpu_model_resolve(&models[i], list[i].name, &err) < 0) {
			/* A host older than the model: say so, and list it without features. */
			fprintf(stderr, "hv cpu: %s: %s\n", list[i].name, err.msg);
			memset(&models[i], 0, sizeof(models[i]));
		}
	(json ? print_json : print_text)(list, n, models);
	return HV_EXIT_OK;
}

int cmd_cpu(int argc, char **argv)
{
	static const struct option options[] = {
		{"help", no_argument, NULL, 'h'}, {"json", no_argument, NULL, 'j'}, {0}};
	bool json = false;
	int c;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			print_help();
			return HV_EXIT_OK;
		}
		if (c != 'j')
			return usage_error("cpu", "see above");
		json = true;
	}
	if (optind + 1 != argc || strcmp(argv[optind], "list"))
		return usage_error("cpu", "say what to do: list");
	return cpu_list(json);
}
