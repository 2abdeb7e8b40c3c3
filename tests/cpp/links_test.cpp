#include "paramixer/links.h"

#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <sstream>

namespace paramixer {
namespace {

// One row of the table that the Python tests read too: a flat JSON object a line, integers only.
struct Row {
  std::string protocol;
  int64_t length;
  int64_t factors;
  int64_t links;
  bool defaults;  // factors and links are the ones that the length implies
  std::vector<int64_t> offsets;
};

std::vector<int64_t> integers(const std::string& text) {
  std::vector<int64_t> list;
  std::stringstream stream(text);
  for (std::string item; std::getline(stream, item, ',');) list.push_back(std::stoll(item));
  return list;
}

std::vector<Row> read_table() {
  static const std::regex pattern(
      "\"protocol\": \"(\\w+)\", \"length\": (\\d+), \"factors\": (\\d+), \"links\": (\\d+), "
      "\"defaults\": (\\d), \"offsets\": \\[(.*)\\]\\}");
  std::vector<Row> rows;
  std::ifstream file(PARAMIXER_LINK_TABLE);
  for (std::string line; std::getline(file, line);) {
    std::smatch match;
    if (!std::regex_search(line, match, pattern)) continue;
    rows.push_back({match[1], std::stoll(match[2]), std::stoll(match[3]), std::stoll(match[4]),
                    match[5] == "1", integers(match[6])});
  }
  return rows;
}

TEST(Links, AgreeWithTheTablePythonReads) {
  const std::vector<Row> rows = read_table();
  ASSERT_GT(rows.size(), 8u);
  for (const Row& row : rows) {
    const bool is_chord = row.protocol == "chord";
    const auto factors =
        is_chord ? (row.defaults ? chord(row.length) : chord(row.length, row.factors, row.links))
                 : (row.defaults ? cdil(row.length) : cdil(row.length, row.factors, row.links));
    std::vector<int64_t> flat;
    for (const auto& offsets : factors) flat.insert(flat.end(), offsets.begin(), offsets.end());
    EXPECT_EQ(flat, row.offsets) << row.protocol << " of length " << row.length;
    EXPECT_EQ(static_cast<int64_t>(factors.size()), row.factors);
  }
}

TEST(Links, RefuseImpossibleArguments) {
  EXPECT_THROW(chord(0), std::invalid_argument);
  EXPECT_THROW(chord(8, 0), std::invalid_argument);
  EXPECT_THROW(chord(8, std::nullopt, 0), std::invalid_argument);
  EXPECT_THROW(chord(8, std::nullopt, 65), std::invalid_argument);
  EXPECT_THROW(cdil(8, 64), std::invalid_argument);
  EXPECT_THROW(cdil(8, std::nullopt, 65), std::invalid_argument);
  EXPECT_THROW(cdil(0), std::invalid_argument);
  EXPECT_THROW(cdil(8, 0), std::invalid_argument);
  EXPECT_THROW(cdil(8, std::nullopt, -1), std::invalid_argument);
  try {
    cdil(8, std::nullopt, 4);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "cdil: links must be odd (got 4)");
  }
}

}  // namespace
}  // namespace paramixer
