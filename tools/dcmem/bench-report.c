/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows are printed and written as soon as their set of data is measured, so that a long run shows
 * something. Owns the closing lists. One thread.
 */
#include "bench-report.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/range.h"
#include "dcmem/container.h"
#include "model/index.h"
#include "table.h"

#define RULE_BYTES (1ULL << 30) /* decoded for each row */
#define BUSY	   0.97 /* below this, other programs take part in the figures */

static const char *path_name(const struct bench_variant *variant)
{
	return variant->coder.has_paths ? cpu_path_name(variant->path) : "-";
}

/* --- JSON --- */

static void json_machine(struct json_out *json, const struct bench_machine *machine)
{
	json_out_object(json, "machine");
	json_out_string(json, "cpu", machine->cpu);
	json_out_u64(json, "cpus", machine->n_cpus);
	json_out_u64(json, "pinned_cpu", machine->pinned);
	json_out_array(json, "caches");
	for (unsigned i = 0; i < machine->n_caches; i++) {
		json_out_object(json, NULL);
		json_out_u64(json, "level", machine->caches[i].level);
		json_out_string(json, "type", machine->caches[i].type);
		json_out_u64(json, "n_bytes", machine->caches[i].n_bytes);
		json_out_end(json, '}');
	}
	json_out_end(json, ']');
	json_out_u64(json, "last_level_bytes", machine->last_level_bytes);
	json_out_u64(json, "last_level_bytes_of_all_cpus", machine->all_last_level_bytes);
	json_out_string(json, "kernel", machine->kernel);
	json_out_string(json, "huge_pages", machine->huge_pages);
	json_out_string(json, "compiler", machine->compiler);
	json_out_string(json, "best_path", cpu_path_name(cpu_path()));
	json_out_end(json, '}');
}

static void json_stats(struct json_out *json, const char *key, const struct bench_stats *stats)
{
	json_out_object(json, key);
	json_out_double(json, "median", stats->median);
	json_out_double(json, "min", stats->min);
	json_out_double(json, "q1", stats->q1);
	json_out_double(json, "q3", stats->q3);
	json_out_double(json, "max", stats->max);
	json_out_u64(json, "samples", stats->n);
	json_out_end(json, '}');
}

static void json_row(struct json_out *json, const struct bench_data *data,
		     const struct bench_row *row, unsigned n_threads)
{
	const struct bench_coder *coder = &row->variant->coder;

	json_out_object(json, NULL);
	json_out_string(json, "data", data->name);
	json_out_string(json, "dtype", dtype_name(data->dtype));
	json_out_string(json, "codec", coder->name);
	json_out_string(json, "library", coder->is_copy ? "-" : coder->library ?: "dcmem");
	json_out_string(json, "path", path_name(row->variant));
	json_out_string(json, "kind", bench_kind_name(row->kind));
	json_out_u64(json, "threads", row->kind == BENCH_CORES ? n_threads : 1);
	json_out_double(json, "order0_bits", data->order0_bits);
	if (!coder->is_copy) {
		json_out_double(json, "ratio", row->ratio);
		json_out_double(json, "share", row->share);
		json_out_u64(json, "stored_bytes", row->stored_bytes);
		json_out_u64(json, "raw_pages", row->raw_pages);
	}
	json_out_u64(json, "decoded_bytes", row->decoded_bytes);
	json_stats(json, "decode_gb_s", &row->decode);
	if (row->on_cpu > 0)
		json_out_double(json, "on_cpu", row->on_cpu);
	if (row->encode.n)
		json_stats(json, "encode_gb_s", &row->encode);
	if (row->to_zstd1 > 0)
		json_out_double(json, "to_zstd1", row->to_zstd1);
	if (row->to_memcpy > 0)
		json_out_double(json, "to_memcpy", row->to_memcpy);
	json_out_end(json, '}');
}

static void json_data(struct json_out *json, const struct bench_report_data *data)
{
	json_out_object(json, NULL);
	json_out_string(json, "name", data->name);
	json_out_string(json, "dtype", dtype_name(data->dtype));
	json_out_double(json, "order0_bits", data->order0_bits);
	json_out_double(json, "bound", data->bound);
	json_out_u64(json, "n_pages", data->n_pages);
	json_out_u64(json, "n_bytes", data->page_bytes);
	json_out_u64(json, "source_bytes", data->source_bytes);
	json_out_u64(json, "repeats", data->n_repeats);
	json_out_u64(json, "bytes_a_run", data->region_bytes);
	json_out_bool(json, "beyond_caches", data->beyond_caches);
	json_out_double(json, "huge_page_share", data->huge_share);
	json_out_end(json, '}');
}

static void json_worst(struct json_out *json, const struct bench_report *report)
{
	json_out_array(json, "worst");
	for (size_t i = 0; i < report->n_worst; i++) {
		const struct bench_worst *worst = &report->worst[i];

		json_out_object(json, NULL);
		json_out_string(json, "codec", worst->codec);
		json_out_string(json, "path", worst->path);
		json_out_string(json, "kind", bench_kind_name(worst->kind));
		json_out_string(json, "dtype", dtype_name(worst->dtype));
		if (isfinite(worst->share)) {
			json_out_double(json, "share", worst->share);
			json_out_string(json, "share_data", report->data[worst->share_data].name);
		}
		json_out_double(json, "decode_gb_s", worst->decode);
		json_out_string(json, "decode_data", report->data[worst->decode_data].name);
		if (isfinite(worst->to_zstd1)) {
			json_out_double(json, "to_zstd1", worst->to_zstd1);
			json_out_string(json, "to_zstd1_data",
					report->data[worst->zstd1_data].name);
		}
		if (isfinite(worst->to_memcpy)) {
			json_out_double(json, "to_memcpy", worst->to_memcpy);
			json_out_string(json, "to_memcpy_data",
					report->data[worst->memcpy_data].name);
		}
		json_out_end(json, '}');
	}
	json_out_end(json, ']');
}

/* --- the worst --- */

static void least(double value, unsigned data, double *worst, unsigned *worst_data)
{
	if (value > 0 && value < *worst) {
		*worst = value;
		*worst_data = data;
	}
}

static int keep_worst(struct bench_report *report, const struct bench_data *data,
		      const struct bench_row *row)
{
	const char *codec = row->variant->coder.name, *path = path_name(row->variant);
	unsigned number = (unsigned)report->n_data - 1;
	struct bench_worst *worst = NULL;
	void *array = report->worst;
	int r;

	for (size_t i = 0; i < report->n_worst && !worst; i++) {
		struct bench_worst *w = &report->worst[i];

		if (strcmp(w->codec, codec) == 0 && strcmp(w->path, path) == 0 &&
		    w->kind == row->kind && w->dtype == data->dtype)
			worst = w;
	}
	if (!worst) {
		r = memory_grow(&array, &report->worst_capacity, report->n_worst,
				report->n_worst + 1, sizeof(*worst));
		report->worst = array;
		if (r)
			return r;
		worst = &report->worst[report->n_worst++];
		*worst = (struct bench_worst){ .path = path,
					       .kind = row->kind,
					       .dtype = data->dtype,
					       .share = INFINITY,
					       .decode = INFINITY,
					       .to_zstd1 = INFINITY,
					       .to_memcpy = INFINITY };
		snprintf(worst->codec, sizeof(worst->codec), "%s", codec);
	}
	least(row->share, number, &worst->share, &worst->share_data);
	least(row->decode.median, number, &worst->decode, &worst->decode_data);
	least(row->to_zstd1, number, &worst->to_zstd1, &worst->zstd1_data);
	least(row->to_memcpy, number, &worst->to_memcpy, &worst->memcpy_data);
	return 0;
}

/* --- tables --- */

struct cells {
	char text[TABLE_MAX_COLUMNS][48];
	const char *cell[TABLE_MAX_COLUMNS];
};

static void cell_number(struct cells *cells, unsigned column, int digits, double value, bool there)
{
	if (there)
		snprintf(cells->text[column], sizeof(cells->text[column]), "%.*f", digits, value);
	else
		snprintf(cells->text[column], sizeof(cells->text[column]), "-");
	cells->cell[column] = cells->text[column];
}

static void cell_spread(struct cells *cells, unsigned column, const struct bench_stats *stats)
{
	snprintf(cells->text[column], sizeof(cells->text[column]), "%.2f-%.2f", stats->min,
		 stats->max);
	cells->cell[column] = cells->text[column];
}

static int print_rows(const struct bench_result *result)
{
	static const char *const head[] = { "codec",  "path",	"kind",	   "ratio",  "share",
					    "GB/s",   "spread", "/zstd-1", "/memcpy", "encode" };
	struct table table;
	int r;

	table_init(&table, 10, "lllrrrrrrr");
	r = table_row(&table, head);
	for (unsigned i = 0; i < result->n_rows && !r; i++) {
		const struct bench_row *row = &result->rows[i];
		struct cells c = { .cell = { row->variant->coder.name, path_name(row->variant),
					     bench_kind_name(row->kind) } };

		cell_number(&c, 3, 3, row->ratio, row->ratio > 0);
		cell_number(&c, 4, 4, row->share, row->ratio > 0);
		cell_number(&c, 5, 2, row->decode.median, true);
		cell_spread(&c, 6, &row->decode);
		cell_number(&c, 7, 2, row->to_zstd1, row->to_zstd1 > 0);
		cell_number(&c, 8, 3, row->to_memcpy, row->to_memcpy > 0);
		cell_number(&c, 9, 3, row->encode.median, row->encode.n > 0);
		r = table_row(&table, c.cell);
	}
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r;
}

static void cell_worst(struct cells *cells, unsigned column, int digits, double value,
		       unsigned data)
{
	if (isfinite(value))
		snprintf(cells->text[column], sizeof(cells->text[column]), "%.*f [%u]", digits,
			 value, data + 1);
	else
		snprintf(cells->text[column], sizeof(cells->text[column]), "-");
	cells->cell[column] = cells->text[column];
}

static int print_worst(const struct bench_report *report)
{
	static const char *const head[] = { "codec", "path", "kind",	"dtype",
					    "share", "GB/s", "/zstd-1", "/memcpy" };
	struct table table;
	int r;

	printf("\nThe worst of each codec, and on which data [number]:\n");
	table_init(&table, 8, "llllrrrr");
	r = table_row(&table, head);
	for (size_t i = 0; i < report->n_worst && !r; i++) {
		const struct bench_worst *w = &report->worst[i];
		struct cells c = { .cell = { w->codec, w->path, bench_kind_name(w->kind),
					     dtype_name(w->dtype) } };

		cell_worst(&c, 4, 4, w->share, w->share_data);
		cell_worst(&c, 5, 2, w->decode, w->decode_data);
		cell_worst(&c, 6, 2, w->to_zstd1, w->zstd1_data);
		cell_worst(&c, 7, 3, w->to_memcpy, w->memcpy_data);
		r = table_row(&table, c.cell);
	}
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r;
}

static void print_data(const struct bench_report *report, const struct bench_report_data *data)
{
	char distinct[24], run[24];

	printf("\n[%zu] %s: order-0 %.3f bits%s, bound %.3f; %s in %llu pages, %u times = %s a "
	       "run, %.0f %% on huge pages%s\n",
	       report->n_data, data->name, data->order0_bits,
	       bench_exponent_bits(data->dtype) ? " of exponent" : "", data->bound,
	       table_bytes(data->page_bytes, distinct), (unsigned long long)data->n_pages,
	       data->n_repeats, table_bytes(data->region_bytes, run), 100 * data->huge_share,
	       data->beyond_caches ? "" : ", INSIDE CACHES");
}

/* --- the report --- */

void bench_report_begin(struct bench_report *report, const struct bench_options *options,
			const struct bench_variant *variants, unsigned n_variants, bool quick,
			FILE *json_file)
{
	const struct bench_machine *machine = options->machine;
	const char *library = "";
	char last[24];

	*report = (struct bench_report){ .options = options, .quick = quick,
					 .json_file = json_file,
					 .rule_kept = !quick && !options->cpu_time,
					 .on_cpu = 1 };
	printf("%s, last-level cache %s, %u CPUs, the one-core rows on CPU %u\n"
	       "%s, huge pages: %s\n",
	       machine->cpu, table_bytes(machine->last_level_bytes, last), machine->n_cpus,
	       machine->pinned, machine->kernel, machine->huge_pages);
	if (options->cpu_time)
		printf("One-core rows count the time on the CPU alone\n");
	if (quick)
		printf("QUICK: less than the protocol asks for; the figures are rough\n");
	for (unsigned i = 0; i < n_variants; i++) {
		if (variants[i].coder.library && strcmp(variants[i].coder.library, library) != 0)
			printf("%s%s", *library ? ", " : "peers: ", variants[i].coder.library);
		library = variants[i].coder.library ?: library;
	}
	printf("\nGB/s are 10^9 decoded bytes a second, medians of %u rounds\n", options->rounds);
	fflush(stdout);
	if (!json_file)
		return;
	json_out_init(&report->json, json_file);
	json_out_object(&report->json, NULL);
	json_out_string(&report->json, "format", "dcmem-bench-codec");
	json_out_u64(&report->json, "version", 1);
	json_out_string(&report->json, "dcmem", DCMEM_VERSION);
	json_out_bool(&report->json, "quick", quick);
	json_out_u64(&report->json, "rounds", options->rounds);
	json_out_string(&report->json, "clock", options->cpu_time ? "cpu" : "wall");
	json_out_u64(&report->json, "page_bytes", BENCH_PAGE_BYTES);
	json_out_u64(&report->json, "page_record_bytes", sizeof(struct container_page));
	json_machine(&report->json, machine);
	json_out_array(&report->json, "rows");
}

static bool is_beyond_caches(const struct bench_report *report, const struct bench_result *result)
{
	const struct bench_machine *machine = report->options->machine;
	uint64_t cache = report->options->kinds[BENCH_CORES] ? machine->all_last_level_bytes :
							       machine->last_level_bytes;

	return cache && result->least_stored_bytes > cache && result->region_bytes > cache;
}

int bench_report_add(struct bench_report *report, const struct bench_data *data,
		     const struct bench_result *result)
{
	struct bench_report_data *kept;
	void *array = report->data;
	int r = memory_grow(&array, &report->data_capacity, report->n_data, report->n_data + 1,
			    sizeof(*kept));

	report->data = array;
	if (r)
		return r;
	kept = &report->data[report->n_data++];
	*kept = (struct bench_report_data){
		.dtype = data->dtype,
		.n_pages = data->n_pages,
		.page_bytes = data->page_bytes,
		.source_bytes = data->source_bytes,
		.region_bytes = result->region_bytes,
		.n_repeats = result->n_repeats,
		.order0_bits = data->order0_bits,
		.bound = data->bound,
		.huge_share = (double)result->huge_bytes / (double)max_u64(result->held_bytes, 1),
		.beyond_caches = is_beyond_caches(report, result),
	};
	snprintf(kept->name, sizeof(kept->name), "%s", data->name);
	report->rule_kept = report->rule_kept && kept->beyond_caches && kept->huge_share > 0.99;
	print_data(report, kept);
	r = print_rows(result);
	fflush(stdout);
	for (unsigned i = 0; i < result->n_rows && !r; i++) {
		if (result->rows[i].decoded_bytes < RULE_BYTES)
			report->rule_kept = false;
		if (result->rows[i].on_cpu > 0)
			report->on_cpu = fmin(report->on_cpu, result->rows[i].on_cpu);
		r = keep_worst(report, data, &result->rows[i]);
		if (report->json_file)
			json_row(&report->json, data, &result->rows[i],
				 report->options->machine->n_cpus);
	}
	return r;
}

int bench_report_end(struct bench_report *report, bool complete)
{
	int r = report->n_worst ? print_worst(report) : 0;

	report->rule_kept = report->rule_kept && complete;
	if (report->on_cpu < BUSY)
		printf("\nThe machine was not idle: a run had the CPU for %.0f %% of its time\n",
		       100 * report->on_cpu);
	if (!report->rule_kept)
		printf("\nNot the whole protocol: %s\n",
		       !complete     ? "it ended early" :
		       report->quick ? "--quick" :
		       report->options->cpu_time ?
				       "--cpu-time" :
				       "too few bytes beyond the caches, or no huge pages");
	if (!report->json_file)
		return r;
	json_out_end(&report->json, ']');
	json_out_array(&report->json, "data");
	for (size_t i = 0; i < report->n_data; i++)
		json_data(&report->json, &report->data[i]);
	json_out_end(&report->json, ']');
	json_worst(&report->json, report);
	json_out_bool(&report->json, "complete", complete);
	json_out_bool(&report->json, "rule_kept", report->rule_kept);
	json_out_end(&report->json, '}');
	return r;
}

void bench_report_deinit(struct bench_report *report)
{
	report->data = memory_free(report->data);
	report->worst = memory_free(report->worst);
}
